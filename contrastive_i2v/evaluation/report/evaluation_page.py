"""The report of an evaluation as one HTML file: is this model better, where, and is the difference real?

The parts are `evaluation_verdict`, `evaluation_tables`, `evaluation_curves` and `evaluation_videos`; this module puts
them together. Everything that comes from outside (names, captions, paths, warnings) is escaped, and nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from contrastive_i2v.evaluation.report.evaluation_curves import curve_data, curves, latent_maps
from contrastive_i2v.evaluation.report.evaluation_player import PLAYER
from contrastive_i2v.evaluation.report.evaluation_rows import Row, clip_order, metric_rows
from contrastive_i2v.evaluation.report.evaluation_script import SCRIPT
from contrastive_i2v.evaluation.report.evaluation_style import EVALUATION_STYLE
from contrastive_i2v.evaluation.report.evaluation_tables import Styles, forest_plots, summary_table, swatch
from contrastive_i2v.evaluation.report.evaluation_verdict import verdict
from contrastive_i2v.evaluation.report.evaluation_videos import Library, video_grid
from contrastive_i2v.evaluation.report.template import BASE
from contrastive_i2v.evaluation.results import Evaluated, Report

TONES = 6
"""Colours for methods; the two baselines that need no model are grey."""
SHOWN_WARNINGS = 3

FOREST_NOTE = (
    "The left method minus the right one on the same clips. Each row has its own scale, turned so that the right side "
    "favours the left method. A filled dot: that one is better, the interval leaves 0 out. A hollow "
    "dot: the interval holds 0, or there is none, or neither side is better."
)
CURVES_NOTE = (
    "Each metric at each frame index, frame 0 being the given one. The number beside a method is its slope: the change "
    "a frame by least squares. Point at a chart, or move in it with the arrow keys, for the values."
)
MAPS_NOTE = (
    "Every line is a clip: its latents frame by frame in a plane, where the model went against where the truth went. "
    "Point at a line, or choose a clip, to see it in every map."
)


def build_evaluation_page(report: Report, folder: Path, *, video_bytes: int = 40_000_000) -> str:
    """The page, self-contained: style, scripts, plots and videos are inside.

    Args:
        report: what was measured.
        folder: where report.json lies and relative video paths start; the page belongs there too.
        video_bytes: what the videos may take of the page, in bytes (a file takes 4/3 of its size). The first clips and
            the best and worst cases of every metric come first; the rest is linked, so it shows while its files are
            beside the page. A file that is missing is said to be in its place.
    """
    rows = metric_rows(report)
    styles = method_styles(report.methods)
    order = {clip.name: index for index, clip in enumerate(clip_order(report))}
    library = Library(folder=folder, room=video_bytes)
    grid, playing = video_grid(report, rows, styles, library)
    sections = [
        ("summary", "Summary", summary_table(report, rows, styles) if rows else ""),
        ("differences", "Differences", _noted(FOREST_NOTE, forest_plots(report, rows, styles))),
        ("curves", "Over time", _noted(CURVES_NOTE, curves(rows, styles))),
        ("latents", "Latent space", _noted(MAPS_NOTE, latent_maps(report, styles, order))),
        ("videos", "Videos", grid),
        ("provenance", "Provenance", _provenance(report, styles)),
    ]
    sections = [one for one in sections if one[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "\n".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    clips = [f"{clip.name}: {clip.caption}" for clip in clip_order(report)]
    data = embedded_json({"curves": curve_data(rows, styles), "clips": clips, "playing": playing})
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(report.title)}</title><style>{BASE}{EVALUATION_STYLE}</style></head>\n"
        f'<body><main>{_header(report, rows)}<nav aria-label="Sections">{links}</nav>\n{body}</main>\n'
        f'<div id="tip" role="tooltip" hidden></div><script type="application/json" id="data">{data}</script>\n'
        + "\n".join(library.scripts())
        + f"\n<script>{SCRIPT}{PLAYER}</script></body></html>\n"
    )


def method_styles(methods: Sequence[Evaluated]) -> dict[str, str]:
    """A CSS class a method: grey for the baselines without a model, else the next colour."""
    grey = {"first-frame": "still", "retrieval": "base"}
    coloured = [method.name for method in methods if method.kind not in grey]
    return {m.name: grey.get(m.kind) or f"tone{coloured.index(m.name) % TONES}" for m in methods}


def embedded_json(values: Any) -> str:
    """JSON that can stand in a script element: no character in it can end the element or start a comment."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _noted(note: str, content: str) -> str:
    return content and f'<p class="muted">{note}</p>{content}'


def _header(report: Report, rows: Sequence[Row]) -> str:
    clips = len(clip_order(report))
    counts = f"{_count(len(report.methods), 'method')}, {_count(clips, 'clip')}, {_count(len(rows), 'metric')}"
    stamp = f'<p class="muted">{counts} · {escape(report.created)}</p>'
    said = "".join(f"<p>{paragraph}</p>" for paragraph in verdict(report, rows))
    return (
        f'<header><h1>{escape(report.title)}</h1>{stamp}<div class="verdict">{said}</div>{_warnings(report)}</header>'
    )


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _warnings(report: Report) -> str:
    items = [f"<li>{escape(one)}</li>" for one in dict.fromkeys(report.warnings)]
    if not items:
        return ""
    more = items[SHOWN_WARNINGS:]
    rest = f"<details><summary>{_count(len(more), 'more warning')}</summary><ul>{''.join(more)}</ul></details>"
    shown = "".join(items[:SHOWN_WARNINGS])
    return f'<aside class="warnings" aria-label="Warnings"><ul>{shown}</ul>{rest if more else ""}</aside>'


def _provenance(report: Report, styles: Styles) -> str:
    parts = [
        "<h3>Command</h3>"
        f'<div class="command"><pre id="command">{escape(report.command)}</pre>'
        '<button type="button" id="copy" hidden>Copy</button></div>',
        f"<h3>Data and machine</h3>{_list({'created': report.created, **report.provenance})}",
    ]
    for method in report.methods:
        facts = {"kind": method.kind, **method.provenance}
        if method.seconds:
            facts["seconds"] = f"{method.seconds:.1f}"
        parts.append(f"<h3>{swatch(styles[method.name])}{escape(method.name)}</h3>{_list(facts)}")
    for one in report.extractors.values():
        facts = {"dimensions": str(one.dimension), "weights": one.weights, "resize": one.resize}
        if one.stands_in_for:
            facts["stands in for"] = f"{one.stands_in_for}; no published number compares"
        parts.append(f"<h3>{escape(one.name)}</h3>{_list(facts)}")
    return (
        '<p class="muted">What makes these numbers again. The same numbers are in report.json.</p>'
        f"<details><summary>Command, data, methods, extractors</summary>{''.join(parts)}</details>"
    )


def _list(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
