"""The tables that commands print: a metric a row and a method a column; or a form of the loss a row, over its seeds."""

from __future__ import annotations

import math

from contrastive_i2v.evaluation.report.rows import ARROWS, clear_best, metric_rows
from contrastive_i2v.evaluation.report.seeds import difference
from contrastive_i2v.evaluation.results import Interval, Metric, Report, SeedNumber


def format_table(report: Report) -> list[str]:
    """Lines of text: arrow, value and 95 % interval of each method, the truth's value, "!" where there is a warning.

    `*` marks a method that the paired differences call better than each other one.
    """
    names = [method.name for method in report.methods]
    rows = [["", *names, "truth"]]
    group, marked = "", False
    for row in metric_rows(report):
        about, best = row.about, clear_best(row, names, report.differences)
        if about.group != group:
            group = about.group
            rows.append([group])
        marked |= best is not None
        cells = [_cell(row.methods.get(name), mark=name == best) for name in names]
        rows.append([f"  {ARROWS[about.better][0] or ' '} {about.title}", *cells, _number(row.truth)])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    legend = "↓ lower, ↑ higher, ≈ nearer to the truth is better; [95 % interval]; ! = read its warning in the report"
    if marked:
        legend += f"; * = better than {'the other' if len(names) == 2 else 'each other method'}, by the paired interval"
    return [*lines, "", legend, *(f"note: {text}" for text in report.warnings)]


def format_over_seeds(report: Report) -> list[str]:
    """Lines of a markdown table: a form a row, means over its seeds, then what wasn't trained, and the truth."""
    forms = report.over_seeds
    rows = [["", "seeds", "against", *(one.title for one in forms[0].numbers), "verdict"]]
    for form in forms:
        count = str(len(form.seeds)) if form.seeds else ""
        rows.append([form.form, count, form.against, *map(_mean, form.numbers), form.verdict])
    rows.append(["the truth", "", "", *(_number(one.truth) for one in forms[0].numbers), ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]
    note = "In brackets: the paired difference to the form it is held against, ± its 95 % interval from two seeds on."
    return [*lines, "", note] if any(form.numbers[0].difference for form in forms) else lines


def _mean(number: SeedNumber) -> str:
    gap = difference(number)
    return f"{number.mean:.4g}" + f" ({gap})" * bool(gap)


def _cell(metric: Metric | None, *, mark: bool) -> str:
    if metric is None:
        return "-"
    return _interval(metric.estimate) + " *" * mark + " !" * bool(metric.warning)


def _interval(estimate: Interval) -> str:
    if math.isnan(estimate.low):
        return _number(estimate.value) or "-"
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"
