"""Metrics over the frame index, and the trajectories of the latents in a plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contrastive_i2v.evaluation.report.charts import LineChart, Point, Series, line_chart
from contrastive_i2v.evaluation.report.rows import Row, Styles, decimals, interval, number
from contrastive_i2v.evaluation.results import LatentMap, Metric, Report

SIDE, MARGIN = 320, 14


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric's chart and its legend."""

    key: str
    """What the page's script knows the chart by."""
    about: Metric
    chart: LineChart
    legend: list[tuple[str, str, str, str]]
    """Style, name, slope and the slope's interval of each line; texts, "" where there is none."""
    data: list[dict[str, Any]]
    """Of each line, what the page's script shows when a frame is pointed at."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One clip's trajectory in a map, in pixels."""

    style: str
    clip: int
    points: list[Point]


@dataclass(frozen=True, kw_only=True)
class Map:
    """A method's trajectories beside the true ones."""

    name: str
    style: str
    shares: list[int]
    """Per cent of the variance along x and y; empty where the map has none."""
    traces: list[Trace]


@dataclass(frozen=True, kw_only=True)
class Maps:
    """Every method's maps, one kind at a time."""

    kinds: dict[str, list[Map]]
    clips: list[tuple[int, str, str]]
    """Number, name and caption."""


def charts_of(rows: Sequence[Row], styles: Styles) -> list[Curve]:
    """A chart for each metric that has one value a frame index."""
    found = []
    for index, row in enumerate(rows):
        series = _series(row, styles)
        chart = line_chart(series[::-1]) if any(one.name in row.methods for one in series) else None
        if chart is None:
            continue
        slopes = {name: m.slope for name, m in row.methods.items() if m.slope and math.isfinite(m.slope.value)}
        places = decimals(slopes.values())
        legend = []
        for one in series:
            slope = slopes.get(one.name) if one.style != "truth" else None
            value = number(slope.value, places, sign=True) if slope else ""
            legend.append((one.style, one.name, value, interval(slope, places, sign=True) if slope else ""))
        data = [
            {"name": line.name, "style": line.style, "values": [_rounded(y) for _, y in line.points]} for line in series
        ]
        found.append(Curve(key=f"c{index}", about=row.about, chart=chart, legend=legend, data=data))
    return found


def training_chart(report: Report, styles: Styles) -> tuple[LineChart, list[tuple[str, str]]] | None:
    """The noise loss of every training over its steps, and style and name of each form; None where none was logged."""
    trained = [
        (styles[method.name], method.training)
        for method in report.methods
        if method.training and method.training.noise_loss
    ]
    lines = [Series(name="", style=style, points=[(x, y) for x, y in one.noise_loss]) for style, one in trained]
    chart = line_chart(lines)
    return (chart, list(dict.fromkeys((style, one.form) for style, one in trained))) if chart else None


def latent_maps(report: Report, styles: Styles, order: Mapping[str, int]) -> Maps | None:
    """The maps of every method; `order` gives a clip's number by its name. None where there is no map."""
    kinds: dict[str, list[Map]] = {one.method: [] for method in report.methods for one in method.maps}
    for method in report.methods:
        for one in method.maps:
            numbers = [order[clip.name] for clip in method.clips]
            if found := _map(one, method.name, styles[method.name], numbers):
                kinds[one.method].append(found)
    clips = {clip.name: clip.caption for method in report.methods for clip in method.clips}
    return Maps(kinds=kinds, clips=[(order[name], name, said) for name, said in clips.items()]) if kinds else None


def _series(row: Row, styles: Styles) -> list[Series]:
    """In the report's order, then the truth."""
    truth = next((m.per_frame_truth for m in row.methods.values() if m.per_frame_truth), [])
    lines = [(name, styles[name], m.per_frame) for name, m in row.methods.items()] + [("truth", "truth", truth)]
    return [
        Series(name=name, style=style, points=list(enumerate(values)))
        for name, style, values in lines
        if any(math.isfinite(value) for value in values)
    ]


def _map(one: LatentMap, name: str, style: str, numbers: Sequence[int]) -> Map | None:
    every = [p for clip in (*one.points, *one.truth) for p in clip if _finite(p)]
    if not every:
        return None
    (left, right), (low, high) = ((min(p[i] for p in every), max(p[i] for p in every)) for i in (0, 1))
    scale = (SIDE - 2 * MARGIN) / (max(right - left, high - low) or 1.0)  # the same along both axes

    def place(point: Sequence[float]) -> Point:
        x = SIDE / 2 + (point[0] - (left + right) / 2) * scale
        return round(x, 1), round(SIDE / 2 - (point[1] - (low + high) / 2) * scale, 1)

    traces = []
    for trajectories, kind in ((one.truth, "truth"), (one.points, style)):
        for clip, points in zip(numbers, trajectories, strict=False):
            if line := [place(p) for p in points if _finite(p)]:
                traces.append(Trace(style=kind, clip=clip, points=line))
    shares = [round(100 * share) for share in one.explained[:2] if math.isfinite(share)]
    return Map(name=name, style=style, shares=shares, traces=traces)


def _finite(point: Sequence[float]) -> bool:
    return len(point) >= 2 and math.isfinite(point[0]) and math.isfinite(point[1])


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
