"""Metrics over the frame index, and the trajectories of the latents in a plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from contrastive_i2v.evaluation.report.charts import Series, line_chart
from contrastive_i2v.evaluation.report.evaluation_rows import ARROWS, Row, decimals, interval, number
from contrastive_i2v.evaluation.report.evaluation_tables import Styles, swatch
from contrastive_i2v.evaluation.results import LatentMap, Report

SIDE, MARGIN = 320, 14


def curves(rows: Sequence[Row], styles: Styles) -> str:
    """A chart for each metric that has one value a frame index."""
    figures = [_curve(index, row, styles) for index, row in enumerate(rows)]
    return "".join(figures) and f'<div class="charts">{"".join(figures)}</div>'


def curve_data(rows: Sequence[Row], styles: Styles) -> dict[str, Any]:
    """What the page's script shows when a frame is pointed at."""
    return {
        f"c{index}": [
            {"name": one.name, "style": one.style, "values": [_point(y, 5) for _, y in one.points]}
            for one in _series(row, styles)
        ]
        for index, row in enumerate(rows)
    }


def _series(row: Row, styles: Styles) -> list[Series]:
    """In the report's order, then the truth."""
    truth = next((m.per_frame_truth for m in row.methods.values() if m.per_frame_truth), [])
    lines = [(name, styles[name], m.per_frame) for name, m in row.methods.items()] + [("truth", "truth", truth)]
    return [
        Series(name=name, style=style, points=list(enumerate(values)))
        for name, style, values in lines
        if any(math.isfinite(value) for value in values)
    ]


def _curve(index: int, row: Row, styles: Styles) -> str:
    series = _series(row, styles)
    if not any(one.name in row.methods for one in series):
        return ""
    arrow, meaning = ARROWS[row.about.better]
    title = f"{row.about.title}, {row.about.unit}" if row.about.unit else row.about.title
    svg = line_chart(series[::-1], x_label="frame", y_label=title, key=f"c{index}")
    slopes = {name: m.slope for name, m in row.methods.items() if m.slope and math.isfinite(m.slope.value)}
    places = decimals(slopes.values())
    lines, head = [], '<p class="head">slope a frame (95 % interval)</p>'
    for one in series:
        slope = slopes.get(one.name) if one.style != "truth" else None
        text = ""
        if slope:
            bounds = interval(slope, places, sign=True)
            text = number(slope.value, places, sign=True) + (f" <small>({bounds})</small>" if bounds else "")
        lines.append(f"<li>{swatch(one.style)}<span>{escape(one.name)}</span> <span>{text}</span></li>")
    return (
        f'<figure><h3>{escape(title)} <span class="arrow" title="{meaning}" role="img" aria-label="{meaning}">{arrow}'
        f"</span></h3>{svg}<figcaption>{head if slopes else ''}"
        f'<ul class="slopes">{"".join(lines)}</ul></figcaption></figure>'
    )


def latent_maps(report: Report, styles: Styles, order: Mapping[str, int]) -> str:
    """The maps of every method side by side, one kind of map at a time; `order` gives a clip's number by its name."""
    kinds = list(dict.fromkeys(one.method for method in report.methods for one in method.maps))
    if not kinds:
        return ""
    choices = "".join(
        f'<label><input type="radio" name="map" value="{i}"{" checked" * (i == 0)}><span>{escape(kind)}</span></label>'
        for i, kind in enumerate(kinds)
    )
    clips = {clip.name: clip.caption for method in report.methods for clip in method.clips}
    options = "".join(
        f'<option value="{order[name]}">{escape(name)}: {escape(caption)}</option>' for name, caption in clips.items()
    )
    panels = []
    for i, kind in enumerate(kinds):
        figures = []
        for method in report.methods:
            names = [order[clip.name] for clip in method.clips]
            figures += [_map(one, method.name, styles[method.name], names) for one in method.maps if one.method == kind]
        panels.append(f'<div class="maps" data-map="{i}">{"".join(figures)}</div>')
    return (
        f'<div class="choices"><fieldset class="segments" aria-label="Map">{choices}</fieldset>'
        f'<label class="pick">Clip <select id="map-clip"><option value="">all</option>{options}</select></label>'
        f'<span class="muted">{swatch("truth")}truth, ○ first frame, ● last frame</span></div>{"".join(panels)}'
    )


def _map(one: LatentMap, name: str, style: str, numbers: Sequence[int]) -> str:
    every = [p for clip in (*one.points, *one.truth) for p in clip if _finite(p)]
    if not every:
        return ""
    (left, right), (low, high) = ((min(p[i] for p in every), max(p[i] for p in every)) for i in (0, 1))
    scale = (SIDE - 2 * MARGIN) / (max(right - left, high - low) or 1.0)  # the same along both axes

    def place(point: Sequence[float]) -> tuple[float, float]:
        x = SIDE / 2 + (point[0] - (left + right) / 2) * scale
        return x, SIDE / 2 - (point[1] - (low + high) / 2) * scale

    paths = []
    for trajectories, kind in ((one.truth, "truth"), (one.points, style)):
        for number_, points in zip(numbers, trajectories, strict=False):
            line = [place(p) for p in points if _finite(p)]
            if line:
                path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line)
                (x0, y0), (x1, y1) = line[0], line[-1]
                paths.append(
                    f'<g class="trace {kind}" data-clip="{number_}"><path class="hit" d="{path}"/><path d="{path}"/>'
                    f'<circle class="first" cx="{x0:.1f}" cy="{y0:.1f}" r="2.6"/>'
                    f'<circle class="last" cx="{x1:.1f}" cy="{y1:.1f}" r="2.6"/></g>'
                )
    shares = [f"{'xy'[i]}: {100 * share:.0f} %" for i, share in enumerate(one.explained[:2]) if math.isfinite(share)]
    caption = f'<span class="muted">{", ".join(shares)} of the variance</span>' if shares else ""
    return (
        f'<figure><h3>{swatch(style)}{escape(name)}</h3><svg viewBox="0 0 {SIDE} {SIDE}" role="img" '
        f'aria-label="{escape(f"{one.method} of the latents, {name} and truth")}">{"".join(paths)}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _finite(point: Sequence[float]) -> bool:
    return len(point) >= 2 and math.isfinite(point[0]) and math.isfinite(point[1])


def _point(value: float, digits: int) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
