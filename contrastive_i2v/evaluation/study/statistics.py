"""From votes to a result: majorities, win rates with intervals, reasons, agreement.

A pair is won by the method that most of its votes name; equally many make a tie, which is half a win for each. Pairs
count with the votes they have; how many still lack some is said.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from contrastive_i2v.evaluation.results import Interval
from contrastive_i2v.evaluation.statistics import bootstrap
from contrastive_i2v.evaluation.study.questions import QUESTIONS, QuestionName, Side
from contrastive_i2v.evaluation.study.store import Design, Vote

Agreement = Literal["complete", "partial", "split"]
AGREEMENTS: tuple[Agreement, ...] = ("complete", "partial", "split")
Z = 1.959963984540054  # of a two-sided 95 % interval


@dataclass(frozen=True, kw_only=True)
class QuestionResult:
    """One question over all pairs that have a vote on it. Rates are shares in [0, 1]."""

    question: QuestionName
    title: str
    votes: int
    pairs: int
    unfinished: int
    """Pairs of the study with fewer votes than it has raters, those without any included."""
    a_wins: int
    b_wins: int
    ties: int
    win_rate_a: Interval
    """(wins + ties / 2) / pairs, its interval by bootstrap over pairs."""
    win_rate_b: Interval
    wilson_a: Interval
    """The same rate with Wilson's interval, which holds for few pairs and near 0 and 1."""
    vote_share_a: Interval
    """Mean over pairs of the share of a pair's votes that name A, its interval by bootstrap over pairs."""
    agreement: dict[Agreement, int]
    """Pairs by how far their raters agree, of those with at least two votes."""
    kappa: float
    """Fleiss' kappa; NaN where every vote names the same method."""
    reasons: dict[str, dict[Side, int]]
    """Reason -> how many votes for A, and for B, gave it."""
    left_share: Interval
    """Share of votes for the video on the left, with Wilson's interval: far from 1/2, raters have a habit."""

    @property
    def preferred(self) -> Side | None:
        """The method whose win rate is above 1/2 with its whole Wilson interval."""
        if self.wilson_a.low > 0.5:
            return "a"
        return "b" if self.wilson_a.high < 0.5 else None


def analyse(design: Design, votes: Sequence[Vote], *, resamples: int = 2000, seed: int = 0) -> list[QuestionResult]:
    """The result of each question of the study, in its order."""
    return [
        _analyse_one(design, name, [v for v in votes if v.question == name], resamples, seed)
        for name in design.questions
    ]


def agreement_level(a: int, b: int) -> Agreement:
    """How far a pair's raters agree, `a` votes against `b`, two or more in all.

    complete: all name one method. split: one changed vote would take the majority away, max(a, b) - 1 <= (a + b) / 2.
    partial: the rest. For five raters this is 5-0, 3-2 and 4-1, as in Emu Video (arXiv 2311.10709).
    """
    if min(a, b) < 0 or a + b < 2:
        raise ValueError(f"a = {a}, b = {b}: expected two or more votes")
    if min(a, b) == 0:
        return "complete"
    return "split" if 2 * (max(a, b) - 1) <= a + b else "partial"


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float:
    """Agreement beyond chance: kappa = (P - P_e) / (1 - P_e); NaN where P_e = 1 or nothing was judged twice.

        P_i = sum_j n_ij (n_ij - 1) / (n_i (n_i - 1)),    P = mean_i P_i
        p_j = sum_i n_ij / sum_i n_i,                     P_e = sum_j p_j^2

    Source: Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76 (1971), where n_i
    is the same for all subjects. Here n_i may differ; subjects with fewer than two ratings are left out.

    Args:
        counts: [subject][category], how many raters chose that category.
    """
    rows = [row for row in counts if sum(row) >= 2]
    if not rows:
        return math.nan
    observed = sum(sum(n * (n - 1) for n in row) / (sum(row) * (sum(row) - 1)) for row in rows) / len(rows)
    total = sum(map(sum, rows))
    columns: list[int] = [sum(column) for column in zip(*rows, strict=True)]
    if max(columns) == total:
        return math.nan
    chance = sum(n * n for n in columns) / (total * total)
    return (observed - chance) / (1 - chance)


def wilson(successes: float, trials: int) -> Interval:
    """A share with Wilson's score interval at 95 % (Wilson 1927, without continuity correction); NaN for no trials.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes = {successes}: expected a number from 0 to trials = {trials}")
    if trials == 0:
        return Interval(value=math.nan)
    share, scale = successes / trials, 1 + Z**2 / trials
    middle = (share + Z**2 / (2 * trials)) / scale
    half = Z * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2)) / scale
    return Interval(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half))


def _analyse_one(
    design: Design, question: QuestionName, votes: Sequence[Vote], resamples: int, seed: int
) -> QuestionResult:
    named = Counter((vote.pair, vote.choice) for vote in votes)
    counts = [(named[pair.name, "a"], named[pair.name, "b"]) for pair in design.pairs]
    pairs = [count for count in counts if any(count)]
    wins = {"a": sum(a > b for a, b in pairs), "b": sum(b > a for a, b in pairs)}
    ties = len(pairs) - wins["a"] - wins["b"]
    rate = _bootstrap([0.5 + 0.5 * ((a > b) - (a < b)) for a, b in pairs], resamples, seed)
    levels = Counter(agreement_level(a, b) for a, b in pairs if a + b >= 2)
    reasons = Counter((reason, vote.choice) for vote in votes for reason in vote.reasons)
    return QuestionResult(
        question=question,
        title=QUESTIONS[question].title,
        votes=len(votes),
        pairs=len(pairs),
        unfinished=len(design.pairs) - sum(a + b >= design.raters for a, b in pairs),
        a_wins=wins["a"],
        b_wins=wins["b"],
        ties=ties,
        win_rate_a=rate,
        win_rate_b=Interval(value=1 - rate.value, low=1 - rate.high, high=1 - rate.low),
        wilson_a=wilson(wins["a"] + ties / 2, len(pairs)),
        vote_share_a=_bootstrap([a / (a + b) for a, b in pairs], resamples, seed),
        agreement={level: levels[level] for level in AGREEMENTS},
        kappa=fleiss_kappa(pairs),
        reasons={r.name: {"a": reasons[r.name, "a"], "b": reasons[r.name, "b"]} for r in QUESTIONS[question].reasons},
        left_share=wilson(sum(vote.choice == vote.left for vote in votes), len(votes)),
    )


def _bootstrap(values: Sequence[float], resamples: int, seed: int) -> Interval:
    if not values:
        return Interval(value=math.nan)
    return bootstrap(torch.tensor(values, dtype=torch.float64), resamples=resamples, seed=seed)
