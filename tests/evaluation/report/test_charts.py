"""The charts' geometry: points land where the axes say."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from contrastive_i2v.evaluation.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    line_chart,
    moving_mean,
    ticks,
)


def coordinates(svg: str, css_class: str) -> list[tuple[float, float]]:
    path = next(e for e in ElementTree.fromstring(svg).iter() if e.get("class", "").split()[:1] == [css_class])
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", path.get("d", ""))]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3.0, 97.0, [0, 20, 40, 60, 80, 100]),
        (-0.013, 0.031, [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03, 0.04]),
    ],
)
def test_ticks_are_round_and_hold_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0, 1e-9])
def test_ticks_of_one_value_surround_it(value: float) -> None:
    found = ticks(value, value)
    assert found[0] < value < found[-1] or found[0] <= value <= found[-1]
    assert len(found) >= 2


def test_moving_mean_is_centred_and_shorter_at_the_ends() -> None:
    points = [(float(x), float(y)) for x, y in enumerate([0, 3, 6, 3, 0])]
    assert moving_mean(points, 3) == [(0, 1.5), (1, 3.0), (2, 4.0), (3, 3.0), (4, 1.5)]


def test_points_land_on_the_axes() -> None:
    svg = line_chart([Series(name="a", style="x", points=[(0, 0), (5, 1), (10, 0.5)])], x_label="step", y_label="e")
    middle = (LEFT + WIDTH - RIGHT) / 2
    bottom, top = HEIGHT - BOTTOM, TOP
    expected = [(LEFT, bottom), (middle, top), (WIDTH - RIGHT, (bottom + top) / 2)]
    for found, wanted in zip(coordinates(svg, "line"), expected, strict=True):
        assert found == pytest.approx(wanted, abs=0.06)


def test_not_finite_points_are_left_out() -> None:
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 2.0)]
    svg = line_chart([Series(name="a", style="x", points=points)], x_label="step", y_label="e")
    assert len(coordinates(svg, "line")) == 2
    assert "nan" not in svg
    assert "inf" not in svg
    assert line_chart([Series(name="a", style="x", points=[(0, math.nan)])], x_label="s", y_label="e") == ""
    assert line_chart([], x_label="s", y_label="e") == ""


def test_a_band_goes_around_its_line() -> None:
    series = Series(name="a", style="x", points=[(0, 1), (1, 2)], spread=[0.5, 1.0])
    svg = line_chart([series], x_label="s", y_label="e")
    (_, a), (_, b), (_, c), (_, d) = coordinates(svg, "band")
    (_, y0), (_, y1) = coordinates(svg, "line")
    assert (d - a) * 2 == pytest.approx(c - b, abs=0.5)
    assert (a + d) / 2 == pytest.approx(y0, abs=0.1)
    assert (b + c) / 2 == pytest.approx(y1, abs=0.1)


def test_one_point_and_equal_values_draw() -> None:
    for points in ([(3.0, 0.0)], [(0.0, 2.0), (1.0, 2.0)]):
        svg = line_chart([Series(name="a", style="x", points=points)], x_label="s", y_label="e")
        assert len(coordinates(svg, "line")) == len(points)


def test_labels_are_escaped() -> None:
    svg = line_chart([Series(name="a<b", style='"x', points=[(0, 1), (1, 2)])], x_label="<i>", y_label='"&')
    ElementTree.fromstring(svg)
    assert "<i>" not in svg
