"""Line charts as inline SVG whose colours are the page's, so they follow its light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 38


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line. Points that aren't finite are left out."""

    name: str
    """For the legend."""
    style: str
    """The page's CSS class that gives colour and dashes."""
    points: Sequence[Point]
    spread: Sequence[float] = ()
    """Half height of a band around each point; empty = no band."""
    smooth: int = 1
    """Show a centred mean over this many points, and the points themselves faintly."""


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, from_zero: bool = False, key: str = "") -> str:
    """An `<svg>` with axes, ticks and one line a series; "" when no series has a point.

    Args:
        series: drawn in this order, the last on top.
        x_label, y_label: what the axes are, with units.
        from_zero: whether the y axis must hold 0.
        key: what the page's script knows the chart by; it then shows the values, in place of the dots' texts.
    """
    finite = [[p for p in one.points if math.isfinite(p[0]) and math.isfinite(p[1])] for one in series]
    points = [p for line in finite for p in line]
    if not points:
        return ""
    bands = [_band(one) for one in series]
    heights = [y for _, y in points] + [y for band in bands for _, y in band] + [0.0] * from_zero
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = ticks(min(heights), max(heights))
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / ((y_high - y_low) or 1) * (HEIGHT - TOP - BOTTOM)
        return x, y

    label = escape(f"{y_label} by {x_label}")
    found = f' data-chart="{escape(key)}" data-low="{x_low:g}" data-high="{x_high:g}" tabindex="0"' if key else ""
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"{found}>']
    for value in y_ticks:
        y = place((x_low, value))[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in (v for v in x_ticks if x_low <= v <= x_high):
        x = place((value, y_low))[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_number(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for one, line, band in zip(series, finite, bands, strict=True):
        style = escape(one.style)
        if band:
            parts.append(f'<path class="band {style}" d="{_path([place(p) for p in band])}Z"/>')
        if one.smooth > 1:
            parts.append(f'<path class="raw {style}" d="{_path([place(p) for p in line])}"/>')
            line = moving_mean(line, one.smooth)
        parts.append(f'<path class="line {style}" d="{_path([place(p) for p in line])}"/>')
        if one.smooth == 1 and len(line) <= (1 if key else 32):
            parts += [_dot(place(p), style, f"{one.name}, {x_label} {p[0]:g}: {p[1]:.4g}") for p in line]
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, 1, 2 or 5 times a power of ten apart, whose range holds [low, high]."""
    if not high > low:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    rough = (high - low) / count
    scale = 10 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def moving_mean(points: Sequence[Point], width: int) -> list[Point]:
    """Each point's y becomes the mean over `width` points around it, fewer at the ends."""
    half = width // 2
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in w) / len(w)) for (x, _), w in zip(points, windows, strict=True)]


def _band(one: Series) -> list[Point]:
    """The outline of a series' band: along its top, and back along its bottom."""
    rows = [
        (x, y, half)
        for (x, y), half in zip(one.points, one.spread, strict=False)
        if math.isfinite(y) and math.isfinite(half)
    ]
    return [(x, y + half) for x, y, half in rows] + [(x, y - half) for x, y, half in reversed(rows)]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _dot(point: Point, style: str, text: str) -> str:
    x, y = point
    return f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(text)}</title></circle>'


def _number(value: float) -> str:
    return f"{round(value, 10):g}"
