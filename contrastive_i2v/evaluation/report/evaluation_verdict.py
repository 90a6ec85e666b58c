"""What the paired differences allow to say, in plain sentences, and no more than that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from contrastive_i2v.evaluation.report.evaluation_rows import Row, decimals, interval, number
from contrastive_i2v.evaluation.results import Difference, Interval, Report

SHOWN_PAIRS = 3
"""Pairs of methods that the verdict speaks of; all stand under the differences."""


def verdict(report: Report, rows: Sequence[Row]) -> list[str]:
    """Paragraphs of HTML: one a pair of methods, then what holds of all of them."""
    if len(report.methods) == 1:
        name = escape(report.methods[0].name)
        return [f"<b>{name}</b> was evaluated alone: there is nothing here to call it better or worse than."]
    pairs = pair_differences(report.differences)
    if not pairs:
        return ["No paired differences were measured, so this page can't say which method is better."]
    by_name = {row.about.name: row for row in rows}
    paragraphs = [_pair(a, b, found, by_name) for (a, b), found in list(pairs.items())[:SHOWN_PAIRS]]
    if len(pairs) > SHOWN_PAIRS:
        paragraphs.append("The other pairs stand under <a href='#differences'>Differences</a>.")
    return [*paragraphs, _limits(report.differences, rows)]


def pair_differences(differences: Sequence[Difference]) -> dict[tuple[str, str], list[Difference]]:
    """The differences of each pair of methods, in their order."""
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for one in differences:
        pairs.setdefault((one.a, one.b), []).append(one)
    return pairs


def _pair(a: str, b: str, found: Sequence[Difference], rows: Mapping[str, Row]) -> str:
    known = [one for one in found if one.metric in rows and rows[one.metric].about.better != "none"]
    said: dict[str, list[Difference]] = {"a": [], "b": [], "neither": [], "": []}
    for one in known:
        said[one.better].append(one)
    first, second = f"<b>{escape(a)}</b>", f"<b>{escape(b)}</b>"
    sentences = []
    if said["a"]:
        sentences.append(f"{first} is better than {second} on {_listed(said['a'], rows, numbers=True)}.")
    if said["b"]:
        start = f"{second} is better" if said["a"] else f"{second} is better than {first}"
        sentences.append(f"{start} on {_listed(said['b'], rows, numbers=True)}.")
    if said["neither"] and not (said["a"] or said["b"]):
        sentences.append(f"No difference between {first} and {second} shows beyond the noise of the clips.")
    if said["neither"]:
        holds = "the intervals hold" if len(said["neither"]) > 1 else "the interval holds"
        sentences.append(f"On {_listed(said['neither'], rows)} {holds} 0.")
    if said[""]:
        sentences.append(f"Of {_listed(said[''], rows)} nothing can be said: there is no interval.")
    if not sentences:
        sentences.append(f"Of {first} against {second} no metric has a better side.")
    return " ".join(sentences)


def _listed(differences: Sequence[Difference], rows: Mapping[str, Row], *, numbers: bool = False) -> str:
    """Titles in a sentence, with the differences in brackets while they are few."""
    items = []
    for one in differences:
        title, estimate = escape(rows[one.metric].about.title), one.estimate
        if one.better == "b":  # the one that is better, minus the other
            estimate = Interval(value=-estimate.value, low=-estimate.high, high=-estimate.low)
        places = decimals([estimate])
        if numbers and len(differences) <= 3 and interval(estimate, places):
            value, bounds = number(estimate.value, places, sign=True), interval(estimate, places, sign=True)
            title += f" <small>({value}; {bounds})</small>"
        items.append(title)
    *most, last = items
    comma = "; " if any("," in rows[one.metric].about.title for one in differences) else ", "
    return f"{comma.join(most)} and {last}" if most else last


def _limits(differences: Sequence[Difference], rows: Sequence[Row]) -> str:
    tested = sum(math.isfinite(one.estimate.low) and math.isfinite(one.estimate.high) for one in differences)
    text = "Intervals are 95 % and come from resampling the clips: the spread between training seeds is not in them."
    if tested >= 10:
        chance = max(1, round(tested / 20))
        text += f" Of {tested} such intervals about {chance} would leave 0 out by chance alone."
    return f'<span class="muted">{text}</span>'
