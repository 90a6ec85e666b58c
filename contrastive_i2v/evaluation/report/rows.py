"""The report turned from methods to metrics: a row a metric, with every method's value, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from contrastive_i2v.evaluation.results import Better, Difference, EvaluatedClip, Interval, Metric, Report

ARROWS: Mapping[Better, tuple[str, str]] = {
    "lower": ("↓", "lower is better"),
    "higher": ("↑", "higher is better"),
    "truth": ("≈", "closer to the truth is better"),
    "none": ("", "describes; neither way is better"),
}
Styles = Mapping[str, str]
"""Method -> the CSS class that gives its colour and dashes."""
CASES = 3
"""Best and worst clips shown for a metric, of each at most so many."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric over the methods that have it."""

    about: Metric
    """Of the first method that has it: its title, group, definition and so on."""
    methods: Mapping[str, Metric]
    """Method -> its values."""
    truth: float
    places: int
    """Decimals that show two digits of the intervals."""

    def merit(self, value: float) -> float:
        """`value` turned so that more is better (or, where neither way is better, just more)."""
        if self.about.better == "lower":
            return -value
        if self.about.better == "truth" and math.isfinite(self.truth):
            return -abs(value - self.truth)
        return value

    def show(self, value: float) -> str:
        return number(value, self.places)


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Clips at the two ends of an order, as indices into `clip_order`; the first of each is the most extreme."""

    upper: list[int]
    lower: list[int]


def metric_rows(report: Report) -> list[Row]:
    """One row a metric, groups together, in the order in which the methods bring them."""
    found: dict[str, dict[str, Metric]] = {}
    for method in report.methods:
        for metric in method.metrics:
            found.setdefault(metric.name, {})[method.name] = metric
    rows = [_row(methods) for methods in found.values()]
    groups = list(dict.fromkeys(row.about.group for row in rows))
    return sorted(rows, key=lambda row: groups.index(row.about.group))


def _row(methods: Mapping[str, Metric]) -> Row:
    truth = next((m.truth for m in methods.values() if math.isfinite(m.truth)), math.nan)
    places = decimals([m.estimate for m in methods.values()])
    return Row(about=next(iter(methods.values())), methods=methods, truth=truth, places=places)


def clear_best(row: Row, names: Sequence[str], differences: Sequence[Difference]) -> str | None:
    """The method whose paired differences say that it is better than each other one; None where there is none."""
    wins: dict[str, set[str]] = {name: set() for name in names}
    for one in differences:
        if one.metric == row.about.name and one.better in ("a", "b") and {one.a, one.b} <= wins.keys():
            winner, loser = (one.a, one.b) if one.better == "a" else (one.b, one.a)
            wins[winner].add(loser)
    others = len(row.methods) - 1
    best = [name for name in names if others and name in row.methods and len(wins[name] & row.methods.keys()) == others]
    return best[0] if best and row.about.better != "none" else None


def clip_order(report: Report) -> list[EvaluatedClip]:
    """Each clip once, by name, as the first method that has it orders them."""
    found: dict[str, EvaluatedClip] = {}
    for method in report.methods:
        for clip in method.clips:
            found.setdefault(clip.name, clip)
    return list(found.values())


def per_clip(report: Report, row: Row) -> dict[str, list[float]]:
    """Method -> the metric of each clip of `clip_order`, NaN where it lacks one; without methods that have none."""
    order = [clip.name for clip in clip_order(report)]
    values = {}
    for method in report.methods:
        metric = row.methods.get(method.name)
        if metric is not None and metric.per_clip:
            by_name = dict(zip((clip.name for clip in method.clips), metric.per_clip, strict=False))
            values[method.name] = [by_name.get(name, math.nan) for name in order]
    return values


def cases_of(row: Row, values: Sequence[float], minus: Sequence[float] | None = None) -> Cases:
    """The clips where a method does best and worst, or, with `minus`, where it is ahead and behind by most."""
    merits = [row.merit(value) for value in values]
    if minus is not None:
        merits = [merit - row.merit(other) for merit, other in zip(merits, minus, strict=True)]
    ranked = sorted((i for i, m in enumerate(merits) if math.isfinite(m)), key=lambda i: merits[i], reverse=True)
    count = min(CASES, (len(ranked) + 1) // 2)
    lower = ranked[::-1][: min(count, len(ranked) - count)]
    return Cases(upper=ranked[:count], lower=lower)


def decimals(estimates: Iterable[Interval]) -> int:
    """Decimals with which half a typical interval shows two digits; where there is none, a value shows four."""
    estimates = [one for one in estimates if math.isfinite(one.value)]
    halves = [(one.high - one.low) / 2 for one in estimates]
    widths = [half for half in halves if math.isfinite(half) and half > 0]
    if widths:
        return max(0, 1 - math.floor(math.log10(median(widths))))
    largest = max((abs(one.value) for one in estimates), default=0.0)
    return max(0, 3 - math.floor(math.log10(largest))) if largest else 1


def number(value: float, places: int, *, sign: bool = False) -> str:
    """A number with a true minus and so many decimals, in powers of ten where they would be more than six."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:+.{places}f}" if places <= 6 else f"{value:+.1e}"
    if not any(digit in "123456789" for digit in text.partition("e")[0]):
        text = text.lstrip("+-")
    return (text if sign else text.lstrip("+")).replace("-", "−")


def interval(estimate: Interval, places: int, *, sign: bool = False) -> str:
    """ "1.2 to 3.4", or "" where there is none."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"{number(estimate.low, places, sign=sign)} to {number(estimate.high, places, sign=sign)}"
