"""The summary table (metrics down, methods across) and the forest plots of the paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from contrastive_i2v.evaluation.report.rows import Row, Styles, clear_best, decimals, interval, number
from contrastive_i2v.evaluation.report.verdict import pair_differences
from contrastive_i2v.evaluation.results import Difference, Extractor, Metric, Report


@dataclass(frozen=True, kw_only=True)
class Line:
    """A metric's row, and what opens below it."""

    key: int
    """A number for the metric: names come from outside and need not be valid ids."""
    row: Row
    best: str | None
    extractor: Extractor | None
    counts: str
    """N of each method where they differ."""
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The table."""

    groups: list[tuple[str, list[Line]]]
    truth: bool
    """Whether some metric has a value of the true videos."""
    stand_ins: list[Extractor]


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """One difference, drawn from 0 to 100 per cent of the row's width with 0 in the middle."""

    title: str
    value: str
    bounds: str
    said: str
    style: str
    centre: float
    """NaN where there is no difference."""
    reach: tuple[float, float] | None


def summary(report: Report, rows: Sequence[Row]) -> Summary:
    """Every metric of every method with its interval, grouped."""
    keys = list(dict.fromkeys(m.name for method in report.methods for m in method.metrics))
    names = [method.name for method in report.methods]
    lines = [
        Line(
            key=keys.index(row.about.name),
            row=row,
            best=clear_best(row, names, report.differences),
            extractor=report.extractors.get(row.about.extractor),
            counts=" / ".join(str(count) for count in dict.fromkeys(m.samples for m in row.methods.values()) if count),
            warnings=_warnings(row),
        )
        for row in rows
    ]
    stand_ins = {line.extractor.name: line.extractor for line in lines if line.extractor}
    return Summary(
        groups=[(group, list(members)) for group, members in groupby(lines, key=lambda line: line.row.about.group)],
        truth=any(math.isfinite(row.truth) for row in rows),
        stand_ins=[one for one in stand_ins.values() if one.stands_in_for],
    )


def forest(report: Report, rows: Sequence[Row], styles: Styles) -> dict[tuple[str, str], list[ForestRow]]:
    """A plot for each pair of methods; a row a metric, each on its own scale."""
    by_name = {row.about.name: row for row in rows}
    known = [one for one in report.differences if one.metric in by_name]
    pairs = pair_differences(sorted(known, key=lambda one: list(by_name).index(one.metric)))
    return {pair: [_forest_row(one, by_name[one.metric], styles) for one in found] for pair, found in pairs.items()}


def _warnings(row: Row) -> list[str]:
    warned: dict[str, list[str]] = {}
    for name, metric in row.methods.items():
        if metric.warning:
            warned.setdefault(metric.warning, []).append(name)
    return [
        warning + (f" ({', '.join(names)})" if len(names) < len(row.methods) else "")
        for warning, names in warned.items()
    ]


def _forest_row(one: Difference, row: Row, styles: Styles) -> ForestRow:
    estimate, places = one.estimate, decimals([one.estimate])
    bounds = interval(estimate, places, sign=True)
    ends = (estimate.value, estimate.low, estimate.high)
    scale = max((abs(end) for end in ends if math.isfinite(end)), default=0.0) or 1.0
    scale *= 1 if bounds else 2  # with no interval, nothing is as far as the edge
    sign = _side(one, row)

    def place(value: float) -> float:
        return round(50 + 47 * sign * value / scale, 2)

    winner = {"a": one.a, "b": one.b}.get(one.better, "")
    said = f"{winner} better" if winner else "interval holds 0" if one.better == "neither" else "nothing can be said"
    directed = row.about.better != "none"
    return ForestRow(
        title=row.about.title,
        value=number(estimate.value, places, sign=True),
        bounds=bounds or "no interval",
        said=said if directed else "describes only",
        style=styles.get(winner, "open") if directed else "open",
        centre=place(estimate.value),
        reach=(place(estimate.low), place(estimate.high)) if bounds else None,
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
