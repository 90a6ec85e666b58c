"""The charts' geometry: points land where the axes say."""

from __future__ import annotations

import math

import pytest

from contrastive_i2v.evaluation.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    LineChart,
    Series,
    line_chart,
    ticks,
)


def chart(*points: tuple[float, float]) -> LineChart:
    found = line_chart([Series(name="a", style="x", points=points)])
    assert found is not None
    return found


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


def test_points_land_on_the_axes() -> None:
    found = chart((0, 0), (5, 1), (10, 0.5))
    bottom = HEIGHT - BOTTOM
    [(style, line)] = found.lines
    expected = [(LEFT, bottom), ((LEFT + WIDTH - RIGHT) / 2, TOP), (WIDTH - RIGHT, (bottom + TOP) / 2)]
    for placed, wanted in zip(line, expected, strict=True):
        assert placed == pytest.approx(wanted, abs=0.06)
    assert (style, found.low, found.high) == ("x", 0, 10)
    assert found.grid[0] == (bottom, "0") and found.grid[-1] == (TOP, "1")
    assert found.ticks[0] == (LEFT, "0") and found.ticks[-1] == (WIDTH - RIGHT, "10")


def test_not_finite_points_are_left_out() -> None:
    [(_, line)] = chart((0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 2.0)).lines
    assert len(line) == 2
    assert line_chart([Series(name="a", style="x", points=[(0, math.nan)])]) is None
    assert line_chart([]) is None


def test_one_point_and_equal_values_draw() -> None:
    for points in ([(3.0, 0.0)], [(0.0, 2.0), (1.0, 2.0)]):
        [(_, line)] = chart(*points).lines
        assert len(line) == len(points)
