"""What the paired differences allow to say, sorted for the page's sentences, and no more than that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from contrastive_i2v.evaluation.report.rows import Row, decimals, interval, number
from contrastive_i2v.evaluation.results import Difference, Interval, Report

SHOWN_PAIRS = 3
"""Pairs of methods that the verdict speaks of; all stand under the differences."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A metric in a sentence; the difference as texts, the better method minus the other, "" without an interval."""

    title: str
    value: str
    bounds: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two methods, and the metrics by which one is better: those that only describe are in none of the lists."""

    a: str
    b: str
    better_a: list[Said] = field(default_factory=list)
    better_b: list[Said] = field(default_factory=list)
    neither: list[Said] = field(default_factory=list)
    unknown: list[Said] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All that the verdict's sentences need."""

    pairs: list[Compared]
    more_pairs: bool
    tested: int
    """Differences with an interval."""
    one_seed: bool
    """Whether forms were trained, and none of them with a second seed."""


def verdict(report: Report, rows: Sequence[Row]) -> Verdict:
    """The first pairs of methods, and what holds of all of them."""
    pairs = pair_differences(report.differences)
    by_name = {row.about.name: row for row in rows}
    estimates = [one.estimate for one in report.differences]
    return Verdict(
        pairs=[_pair(a, b, found, by_name) for (a, b), found in list(pairs.items())[:SHOWN_PAIRS]],
        more_pairs=len(pairs) > SHOWN_PAIRS,
        tested=sum(math.isfinite(one.low) and math.isfinite(one.high) for one in estimates),
        one_seed=bool(report.over_seeds) and all(len(form.seeds) < 2 for form in report.over_seeds),
    )


def pair_differences(differences: Sequence[Difference]) -> dict[tuple[str, str], list[Difference]]:
    """The differences of each pair of methods, in their order."""
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for one in differences:
        pairs.setdefault((one.a, one.b), []).append(one)
    return pairs


def _pair(a: str, b: str, found: Sequence[Difference], rows: Mapping[str, Row]) -> Compared:
    pair = Compared(a=a, b=b)
    lists = {"a": pair.better_a, "b": pair.better_b, "neither": pair.neither, "": pair.unknown}
    for one in found:
        if one.metric in rows and rows[one.metric].about.better != "none":
            lists[one.better].append(_said(one, rows[one.metric].about.title))
    return pair


def _said(one: Difference, title: str) -> Said:
    estimate = one.estimate
    if one.better == "b":
        estimate = Interval(value=-estimate.value, low=-estimate.high, high=-estimate.low)
    places = decimals([estimate])
    bounds = interval(estimate, places, sign=True)
    return Said(title=title, value=number(estimate.value, places, sign=True), bounds=bounds)
