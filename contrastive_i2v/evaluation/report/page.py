"""The report of an evaluation as one HTML file: is this model better, where, and is the difference real?

The templates escape whatever comes from outside (names, captions, paths, warnings), and nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from contrastive_i2v.evaluation.report import charts, curves, seeds, tables, videos
from contrastive_i2v.evaluation.report.rows import ARROWS, Styles, clip_order, interval, metric_rows, number
from contrastive_i2v.evaluation.report.verdict import verdict
from contrastive_i2v.evaluation.results import Evaluated, Report

TONES = 6
"""Colours for methods; the two baselines that need no model are grey."""


def build_page(report: Report, folder: Path, *, video_bytes: int = 40_000_000) -> str:
    """The page, self-contained: style, scripts, plots and videos are inside.

    Args:
        report: what was measured.
        folder: where report.json lies and relative video paths start; the page belongs there too.
        video_bytes: what the videos may take of the page, in bytes (a file takes 4/3 of its size). The first clips and
            the best and worst cases of every metric come first; the rest is linked, so it shows while its files are
            beside the page. A file that is missing is said to be in its place.
    """
    rows, styles = metric_rows(report), method_styles(report.methods)
    library = videos.Library(folder=folder, room=video_bytes)
    seen = replace(report, methods=first_trainings(report.methods))
    grid = videos.video_grid(seen, metric_rows(seen), library)
    clips, drawn = clip_order(report), curves.charts_of(rows, styles)
    data = {
        "chart": charts.GEOMETRY,
        "curves": {one.key: one.data for one in drawn},
        "clips": [f"{clip.name}: {clip.caption}" for clip in clips],
        "playing": grid.data if grid else {},
    }
    template = environment().get_template("page.html.jinja")
    return template.render(
        report=report,
        styles=styles,
        clips=clips,
        verdict=verdict(report, rows),
        table=tables.summary(report, rows),
        seeds=seeds.seeds_table(report, styles),
        forest=tables.forest(report, rows, styles),
        curves=drawn,
        training=curves.training_chart(report, styles),
        maps=curves.latent_maps(seen, styles, {clip.name: index for index, clip in enumerate(clips)}),
        grid=grid,
        provenance=_provenance(report, styles),
        held=list(library.contents()),
        data=Markup(embedded_json(data)),
        style=Markup(read_asset("report.css")),
        script=Markup(read_asset("report.js") + read_asset("player.js")),
    )


def method_styles(methods: Sequence[Evaluated]) -> dict[str, str]:
    """A CSS class a method: grey for the baselines without a model, else the next colour; one for all of a form."""
    grey = {"first-frame": "still", "retrieval": "base"}
    forms = {method.name: method.training.form if method.training else method.name for method in methods}
    coloured = list(dict.fromkeys(forms[method.name] for method in methods if method.kind not in grey))
    return {m.name: grey.get(m.kind) or f"tone{coloured.index(forms[m.name]) % TONES}" for m in methods}


def first_trainings(methods: Sequence[Evaluated]) -> list[Evaluated]:
    """The methods without those of a form's later training seeds, which would crowd the videos and maps."""
    first: dict[str, str] = {}
    for method in methods:
        first.setdefault(method.training.form if method.training else method.name, method.name)
    return [method for method in methods if method.name in first.values()]


def embedded_json(values: Any) -> str:
    """JSON that can stand in a script element: no character in it can end the element or start a comment."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _provenance(report: Report, styles: Styles) -> list[tuple[str, str, dict[str, str]]]:
    """Style, heading and facts of each list."""
    found = [("", "Data and machine", {"created": report.created, **report.provenance})]
    for method in report.methods:
        seconds = {"seconds": f"{method.seconds:.1f}"} if method.seconds else {}
        found.append((styles[method.name], method.name, {"kind": method.kind, **method.provenance, **seconds}))
    for one in report.extractors.values():
        instead = {"stands in for": f"{one.stands_in_for}; no published number compares"} if one.stands_in_for else {}
        facts = {"dimensions": str(one.dimension), "weights": one.weights, "resize": one.resize, **instead}
        found.append(("", one.name, facts))
    return found


@cache
def environment() -> Environment:
    """The templates, which escape whatever is put into them."""
    found = Environment(
        loader=FunctionLoader(read_asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.globals.update(ARROWS=ARROWS, PLOT=charts.GEOMETRY, SIDE=curves.SIDE, interval=interval, number=number)
    return found


def read_asset(name: str) -> str:
    """A file beside the templates."""
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")
