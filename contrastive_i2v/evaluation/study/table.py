"""A study's result as text for a terminal and as plain data for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from contrastive_i2v.evaluation.results import Interval, finite_or_null
from contrastive_i2v.evaluation.study.questions import QUESTIONS
from contrastive_i2v.evaluation.study.statistics import QuestionResult
from contrastive_i2v.evaluation.study.store import Design, Rater, Vote


def to_text(design: Design, raters: Sequence[Rater], votes: Sequence[Vote], results: Sequence[QuestionResult]) -> str:
    """The table, the reasons, and what to know before trusting them."""
    expected = design.raters * len(design.pairs) * len(design.questions)
    rows = [["", *(result.title for result in results)]]
    rows += [
        ["pairs won by A / tied / by B", *(f"{r.a_wins} / {r.ties} / {r.b_wins}" for r in results)],
        ["win rate of A, ties half", *(_percent(r.win_rate_a) for r in results)],
        ["  the same, Wilson's interval", *(_percent(r.wilson_a) for r in results)],
        ["win rate of B, ties half", *(_percent(r.win_rate_b) for r in results)],
        ["share of votes for A", *(_percent(r.vote_share_a) for r in results)],
        ["preferred", *(_preferred(r) for r in results)],
        ["agreement: complete / partial / split", *(" / ".join(map(str, r.agreement.values())) for r in results)],
        ["Fleiss' kappa", *(_number(r.kappa) for r in results)],
        ["votes for the left video", *(_percent(r.left_share) for r in results)],
    ]
    lines = [
        f"A = {design.a}",
        f"B = {design.b}",
        f"{len(design.pairs)} pairs, {len(votes)} of {expected} votes, by {len(raters)} of {design.raters} raters",
        "",
        *_aligned(rows),
    ]
    for result in results:
        titles = {reason.name: reason.title for reason in QUESTIONS[result.question].reasons}
        counts = [[titles[name], str(count["a"]), str(count["b"])] for name, count in result.reasons.items()]
        lines += ["", *_aligned([[f"{result.title}, why", "for A", "for B"], *counts])]
    if notes := _notes(design, results):
        lines += ["", *notes]
    return "\n".join(lines)


def to_json(
    design: Design, raters: Sequence[Rater], votes: Sequence[Vote], results: Sequence[QuestionResult]
) -> dict[str, Any]:
    """The same as data; NaN is None."""
    done = {rater.name: sum(vote.rater == rater.name for vote in votes) for rater in raters}
    values = {
        "a": design.a,
        "b": design.b,
        "seed": design.seed,
        "pairs": len(design.pairs),
        "raters_wanted": design.raters,
        "votes_by_rater": done,
        "results": [asdict(result) | {"preferred": result.preferred} for result in results],
        "notes": _notes(design, results),
    }
    cleaned: dict[str, Any] = finite_or_null(values)
    return cleaned


def _notes(design: Design, results: Sequence[QuestionResult]) -> list[str]:
    notes = []
    for result in results:
        if result.unfinished:
            missing = len(design.pairs) - result.pairs
            without = f"; {missing} have none and are left out" if missing else ""
            notes.append(
                f"{result.title}: {result.unfinished} of {len(design.pairs)} pairs have fewer than {design.raters} "
                f"votes and count with those they have{without}."
            )
        if result.votes and math.isnan(result.kappa):
            why = "every vote names the same method" if sum(result.agreement.values()) else "no pair has two votes"
            notes.append(f"{result.title}: Fleiss' kappa is undefined, as {why}.")
    return notes


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _percent(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "–"
    text = f"{100 * interval.value:.1f} %"
    return text if math.isnan(interval.low) else f"{text} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _preferred(result: QuestionResult) -> str:
    return {"a": "A", "b": "B", None: "neither, by Wilson's interval"}[result.preferred] if result.pairs else "–"
