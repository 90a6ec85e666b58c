"""The summary table (metrics down, methods across) and the forest plots of the paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from contrastive_i2v.evaluation.report.evaluation_rows import ARROWS, Row, clear_best, decimals, interval, number
from contrastive_i2v.evaluation.report.evaluation_verdict import pair_differences
from contrastive_i2v.evaluation.results import Difference, Extractor, Metric, Report

Styles = Mapping[str, str]
"""Method -> the CSS class that gives its colour and dashes."""


def summary_table(report: Report, rows: Sequence[Row], styles: Styles) -> str:
    """Every metric of every method with its interval, grouped; definitions open below their row."""
    names = [method.name for method in report.methods]
    truth = any(math.isfinite(row.truth) for row in rows)
    heads = "".join(f'<th scope="col">{swatch(styles[name])}{escape(name)}</th>' for name in names)
    heads += '<th scope="col">truth</th>' if truth else ""
    body = []
    for group, members in groupby(rows, key=lambda row: row.about.group):
        columns = len(names) + 1 + truth
        body.append(f'<tbody><tr class="group"><th colspan="{columns}" scope="rowgroup">{escape(group)}</th></tr>')
        body += [_row(row, report, names, truth) for row in members]
        body.append("</tbody>")
    return (
        f'<div class="summary{" scroll" * (len(names) + truth > 4)}" style="--columns:{len(names) + truth}"><table>'
        f'<thead><tr><th scope="col">metric</th>{heads}</tr></thead>{"".join(body)}</table></div>{_key(report, rows)}'
    )


def swatch(style: str) -> str:
    """A short piece of a method's line, for legends."""
    return f'<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><path class="line {style}" d="M0 4H26"/></svg>'


def _row(row: Row, report: Report, names: Sequence[str], truth: bool) -> str:
    best = clear_best(row, names, report.differences)
    cells = []
    for name in names:
        metric = row.methods.get(name)
        value = row.show(metric.estimate.value) if metric else "–"
        bounds = interval(metric.estimate, row.places) if metric else ""
        value = f"<b>{value}</b>" if name == best else value
        cells.append(f'<td data-method="{escape(name)}">{value}<small>{bounds}</small></td>')
    if truth:
        cells.append(f'<td class="muted" data-method="truth">{row.show(row.truth)}<small></small></td>')
    arrow, meaning = ARROWS[row.about.better]
    unit = f" <small>{escape(row.about.unit)}</small>" if row.about.unit else ""
    marks = ""
    if _stand_in(row, report):
        marks += ' <span class="mark" title="offline stand-in">stand-in</span>'
    if any(metric.warning for metric in row.methods.values()):
        marks += ' <span class="mark warn" title="has a warning">!</span>'
    where = f"about-{_slug(row, report)}"
    return (
        f'<tr class="metric"><th scope="row"><button type="button" class="define" aria-expanded="false" '
        f'aria-controls="{where}">{escape(row.about.title)}</button>{unit} '
        f'<span class="arrow" title="{meaning}" aria-label="{meaning}" role="img">{arrow}</span>{marks}</th>'
        f'{"".join(cells)}</tr><tr class="definition" id="{where}"><td colspan="{len(names) + 1 + truth}">'
        f"{_definition(row, report)}</td></tr>"
    )


def _slug(row: Row, report: Report) -> int:
    """A number for the metric: names come from outside and need not be valid ids."""
    return list(dict.fromkeys(m.name for method in report.methods for m in method.metrics)).index(row.about.name)


def _definition(row: Row, report: Report) -> str:
    about = row.about
    parts = [f"<p>{escape(about.definition)}</p>"]
    facts = [ARROWS[about.better][1][:1].upper() + ARROWS[about.better][1][1:] + "."]
    if about.samples:
        counts = list(dict.fromkeys(m.samples for m in row.methods.values()))
        facts.append(f"N = {' / '.join(map(str, counts))} {about.sample}s.")
    extractor = report.extractors.get(about.extractor)
    if extractor:
        facts.append(
            f"Features: {escape(extractor.name)}, {extractor.dimension} dimensions; {escape(extractor.resize)}."
        )
    parts.append(f"<p>{' '.join(facts)}</p>")
    if extractor and extractor.stands_in_for:
        parts.append(f"<p>{escape(_no_published(extractor))}</p>")
    warned: dict[str, list[str]] = {}
    for name, metric in row.methods.items():
        if metric.warning:
            warned.setdefault(metric.warning, []).append(name)
    for warning, names in warned.items():
        whose = "" if len(names) == len(row.methods) else f" ({', '.join(names)})"
        parts.append(f'<p class="warning">{escape(warning + whose)}</p>')
    return "".join(parts)


def _stand_in(row: Row, report: Report) -> Extractor | None:
    extractor = report.extractors.get(row.about.extractor)
    return extractor if extractor and extractor.stands_in_for else None


def _no_published(extractor: Extractor) -> str:
    return f"{extractor.name} is an offline stand-in for {extractor.stands_in_for}: no published number compares."


def _key(report: Report, rows: Sequence[Row]) -> str:
    """How to read the table."""
    text = "Small: 95 % interval. Better is ↓ lower, ↑ higher, ≈ closer to the truth. A name opens its definition."
    if len(report.methods) > 1:
        text += " Bold: better than every other method by a paired interval that leaves 0 out; no bold, no clear best."
    found = {one.name: one for one in (_stand_in(row, report) for row in rows) if one}
    lines = [text, *(_no_published(one) for one in found.values())]
    return "".join(f'<p class="muted note">{escape(line)}</p>' for line in lines)


def forest_plots(report: Report, rows: Sequence[Row], styles: Styles) -> str:
    """A plot a pair of methods; a row a metric, each on its own scale."""
    by_name = {row.about.name: row for row in rows}
    known = [one for one in report.differences if one.metric in by_name]
    pairs = pair_differences(sorted(known, key=lambda one: list(by_name).index(one.metric)))
    plots = []
    for index, ((a, b), found) in enumerate(pairs.items()):
        lines = [_forest_row(one, by_name[one.metric], styles) for one in found]
        plots.append(
            f'<details class="forest"{" open" * (index < 3)}><summary>{escape(a)} − {escape(b)}</summary>'
            f'<div class="rows" role="table" aria-label="{escape(f"{a} minus {b}")}"><div class="head" role="row">'
            f'<span role="columnheader">metric</span><span class="sides" role="columnheader">'
            f"<span>← {escape(b)} better</span><span>{escape(a)} better →</span></span>"
            f'<span role="columnheader">difference, 95 % interval</span></div>{"".join(lines)}</div></details>'
        )
    return "".join(plots)


def _forest_row(one: Difference, row: Row, styles: Styles) -> str:
    ends = (one.estimate.value, one.estimate.low, one.estimate.high)
    scale = max((abs(end) for end in ends if math.isfinite(end)), default=0.0) or 1.0
    scale *= 1 if interval(one.estimate, 0) else 2  # with no interval, nothing is as far as the edge
    sign = _side(one, row)

    def place(value: float) -> float:
        return round(50 + 47 * sign * value / scale, 2)

    estimate, places = one.estimate, decimals([one.estimate])
    winner = {"a": one.a, "b": one.b}.get(one.better, "")
    said = f"{winner} better" if winner else "interval holds 0" if one.better == "neither" else "nothing can be said"
    said = "describes only" if row.about.better == "none" else said
    bounds = interval(estimate, places, sign=True)
    marks = '<line class="zero" x1="50%" x2="50%" y1="0" y2="100%"/>'
    style = styles.get(winner, "open") if row.about.better != "none" else "open"
    if bounds:
        marks += (
            f'<line class="reach {style}" x1="{place(estimate.low)}%" x2="{place(estimate.high)}%" y1="50%" y2="50%"/>'
        )
    if math.isfinite(estimate.value):
        marks += f'<circle class="mean {style}" cx="{place(estimate.value)}%" cy="50%" r="4.5"/>'
    text = f"{row.about.title}: {number(estimate.value, places, sign=True)}, {bounds or 'no interval'}; {said}"
    return (
        f'<div class="one" role="row" data-tip="{escape(text)}"><span role="cell">{escape(row.about.title)}</span>'
        f'<span class="bar" role="cell"><svg role="img" aria-label="{escape(said)}">{marks}</svg></span>'
        f'<span class="numbers" role="cell">{number(estimate.value, places, sign=True)} '
        f"<small>{bounds or 'no interval'}</small></span></div>"
    )


def _side(one: Difference, row: Row) -> int:
    """+1 where a larger difference is drawn to the right, `a`'s side, -1 where it favours `b`."""
    if row.about.better in ("lower", "higher"):
        return 1 if row.about.better == "higher" else -1
    if one.better in ("a", "b") and row.about.better == "truth":
        return 1 if (one.estimate.value > 0) == (one.better == "a") else -1
    a, b = (_distance(row.methods.get(name), row.truth) for name in (one.a, one.b))
    if row.about.better == "truth" and a != b and math.isfinite(a + b):
        return 1 if (one.estimate.value > 0) == (a < b) else -1
    return 1


def _distance(metric: Metric | None, truth: float) -> float:
    return abs(metric.estimate.value - truth) if metric else math.nan
