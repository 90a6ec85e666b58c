"""Line charts: where ticks, lines and dots of an SVG lie. The template draws them in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 38
GEOMETRY = {
    "left": LEFT,
    "right": WIDTH - RIGHT,
    "top": TOP,
    "bottom": HEIGHT - BOTTOM,
    "width": WIDTH,
    "height": HEIGHT,
}
"""Edges of the plot, for the page's template and script."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line. Points that aren't finite are left out."""

    name: str
    """For the legend."""
    style: str
    """The page's CSS class that gives colour and dashes."""
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """A chart in pixels, y downwards."""

    low: float
    """First and last x, in data units."""
    high: float
    grid: list[tuple[float, str]]
    """Height and text of each horizontal line."""
    ticks: list[tuple[float, str]]
    """Place and text of each tick along x."""
    lines: list[tuple[str, list[Point]]]
    """Style and points of each series; a single point is a dot."""


def line_chart(series: Sequence[Series]) -> LineChart | None:
    """The chart of some series, the last on top; None when no series has a point."""
    finite = [[p for p in one.points if math.isfinite(p[0]) and math.isfinite(p[1])] for one in series]
    points = [p for line in finite for p in line]
    if not points:
        return None
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / ((y_high - y_low) or 1) * (HEIGHT - TOP - BOTTOM), 1)

    lines = [(one.style, [(across(x), down(y)) for x, y in line]) for one, line in zip(series, finite, strict=True)]
    return LineChart(
        low=x_low,
        high=x_high,
        grid=[(down(value), _number(value)) for value in y_ticks],
        ticks=[(across(value), _number(value)) for value in ticks(x_low, x_high) if x_low <= value <= x_high],
        lines=[(style, line) for style, line in lines if line],
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, 1, 2 or 5 times a power of ten apart, whose range holds [low, high]."""
    if not high > low:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    rough = (high - low) / count
    scale = 10 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{round(value, 10):g}"
