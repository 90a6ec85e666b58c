"""The table that evaluate and compare print: a metric a row, a method a column."""

from __future__ import annotations

import math

from contrastive_i2v.evaluation.results import Interval, Metric, Report

ARROWS = {"lower": "↓", "higher": "↑", "truth": "≈", "none": " "}


def format_table(report: Report) -> list[str]:
    """Lines of text: arrow, value and 95 % interval of each method, the truth's value, "!" where there is a warning.

    In a comparison `*` marks the better one of the first two methods where its interval says so.
    """
    first = report.methods[0].metrics
    names = [method.name for method in report.methods]
    better = {d.metric: d.better for d in report.differences if [d.a, d.b] == names[:2]}
    rows = [["", *names, "truth"]]
    group = ""
    for metric in first:
        if metric.group != group:
            group = metric.group
            rows.append([group])
        found = [next((m for m in method.metrics if m.name == metric.name), None) for method in report.methods]
        cells = [
            _cell(one, mark=better.get(metric.name) == side) for one, side in zip(found, _sides(names), strict=True)
        ]
        rows.append([f"  {ARROWS[metric.better]} {metric.title}", *cells, _number(metric.truth)])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    legend = "↓ lower, ↑ higher, ≈ nearer to the truth is better; [95 % interval]; ! = read its warning in the report"
    if any(side in ("a", "b") for side in better.values()):
        legend += f"; * = better of {names[0]} and {names[1]}, by the paired interval"
    return [*lines, "", legend, *(f"note: {text}" for text in report.warnings)]


def _sides(names: list[str]) -> list[str]:
    return ["a", "b", *("-" for _ in names[2:])][: len(names)]


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
