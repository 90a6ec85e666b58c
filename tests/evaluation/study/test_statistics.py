"""Majorities, intervals, agreement and Fleiss' kappa against figures from print and by hand."""

from __future__ import annotations

import math

import pytest

from contrastive_i2v.evaluation.study.questions import QuestionName, Side
from contrastive_i2v.evaluation.study.statistics import agreement_level, analyse, fleiss_kappa, wilson
from contrastive_i2v.evaluation.study.store import Design, StudyPair, Vote

# The often-printed example of 14 raters who put 10 subjects into 5 categories: kappa = 0.210.
TEN_SUBJECTS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def design_of(pairs: int, raters: int) -> Design:
    names = [f"p{i}" for i in range(pairs)]
    return Design(
        a="ours",
        b="theirs",
        seed=0,
        raters=raters,
        questions=("quality",),
        pairs=tuple(StudyPair(name=name, caption="", sha256_a="", sha256_b="") for name in names),
    )


def votes_of(counts: list[tuple[int, int]], question: QuestionName = "quality") -> list[Vote]:
    """`counts[i]` = votes for A and for B on pair i; A is always on the left."""
    choices: list[tuple[int, int, Side]] = [
        (i, rater, "a" if rater < a else "b") for i, (a, b) in enumerate(counts) for rater in range(a + b)
    ]
    return [
        Vote(rater=f"r{r}", pair=f"p{i}", question=question, left="a", choice=choice, reasons=("sharpness",))
        for i, r, choice in choices
    ]


def test_kappa_of_the_printed_example() -> None:
    # P_i = 1, .253, .308, .440, .330, .462, .242, .176, .286, .286; p_j = 20, 28, 39, 21, 32 of 140
    chance = (20**2 + 28**2 + 39**2 + 21**2 + 32**2) / 140**2
    assert chance == pytest.approx(0.213, abs=5e-4)
    assert fleiss_kappa(TEN_SUBJECTS) == pytest.approx(0.210, abs=5e-4)


def test_kappa_by_hand() -> None:
    # P = (1 + 12/20 + 8/20 + 1) / 4 = 3/4, P_e = (11^2 + 9^2) / 20^2 = 0.505
    assert fleiss_kappa([[5, 0], [4, 1], [2, 3], [0, 5]]) == pytest.approx(49 / 99, abs=1e-12)
    assert fleiss_kappa([[3, 0], [0, 3]]) == pytest.approx(1, abs=1e-12)
    assert fleiss_kappa([[1, 1], [1, 1]]) == pytest.approx(-1, abs=1e-12)
    # unequal: P = (1 + 1/3) / 2, p = (3/5, 2/5); the subject judged once says nothing
    assert fleiss_kappa([[2, 0], [1, 2], [1, 0]]) == pytest.approx((2 / 3 - 13 / 25) / (12 / 25), abs=1e-12)


@pytest.mark.parametrize("counts", [[[5, 0], [5, 0]], [[1, 0], [0, 1]], []])
def test_kappa_is_nan_where_it_is_undefined(counts: list[list[int]]) -> None:
    assert math.isnan(fleiss_kappa(counts))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials)
    assert interval.value == successes / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_and_of_nonsense() -> None:
    assert math.isnan(wilson(0, 0).value) and math.isnan(wilson(0, 0).low)
    with pytest.raises(ValueError, match="successes = 3: expected a number from 0 to trials = 2"):
        wilson(3, 2)


@pytest.mark.parametrize(
    ("a", "b", "level"),
    [
        (5, 0, "complete"),
        (1, 4, "partial"),
        (3, 2, "split"),
        (2, 2, "split"),
        (3, 1, "split"),  # one changed vote makes it a tie
        (0, 2, "complete"),
        (2, 1, "split"),
        (5, 2, "partial"),
        (4, 3, "split"),
    ],
)
def test_agreement_levels(a: int, b: int, level: str) -> None:
    assert agreement_level(a, b) == agreement_level(b, a) == level


def test_one_vote_agrees_with_nobody() -> None:
    with pytest.raises(ValueError, match="expected two or more votes"):
        agreement_level(1, 0)


def test_majorities_of_a_finished_study() -> None:
    (result,) = analyse(design_of(4, 5), votes_of([(5, 0), (4, 1), (3, 2), (0, 5)]))
    assert (result.a_wins, result.ties, result.b_wins, result.votes, result.unfinished) == (3, 0, 1, 20, 0)
    assert result.win_rate_a.value == 0.75 and result.win_rate_b.value == 0.25
    assert result.win_rate_b.low == 1 - result.win_rate_a.high and result.win_rate_b.high == 1 - result.win_rate_a.low
    assert (result.wilson_a.low, result.wilson_a.high) == pytest.approx((0.3006, 0.9544), abs=5e-5)
    assert result.vote_share_a.value == pytest.approx(12 / 20)
    assert result.agreement == {"complete": 2, "partial": 1, "split": 1}
    assert result.reasons["sharpness"] == {"a": 12, "b": 8}
    assert result.reasons["motion_smoothness"] == {"a": 0, "b": 0}
    assert result.left_share.value == pytest.approx(12 / 20)
    assert result.preferred is None


def test_win_rate_s_interval_is_the_binomial_s() -> None:
    # Bootstrap over pairs of 30 wins of 40: quantiles of Binomial(40, 3/4) / 40 are 24.5 +- 1 and 35 of 40.
    (result,) = analyse(design_of(40, 5), votes_of([(5, 0)] * 30 + [(0, 5)] * 10), resamples=20000)
    assert result.win_rate_a.low == pytest.approx(24.5 / 40, abs=0.02)
    assert result.win_rate_a.high == pytest.approx(35 / 40, abs=0.02)
    assert result.preferred == "a"


def test_ties_are_half_a_win_for_each() -> None:
    (result,) = analyse(design_of(3, 4), votes_of([(2, 2), (2, 2), (1, 3)]))
    assert (result.a_wins, result.ties, result.b_wins) == (0, 2, 1)
    assert result.win_rate_a.value == pytest.approx(1 / 3)
    assert result.wilson_a.value == pytest.approx(1 / 3)


def test_unfinished_pairs_count_with_what_they_have() -> None:
    (result,) = analyse(design_of(4, 5), votes_of([(5, 0), (1, 1), (1, 0)]))
    assert (result.pairs, result.unfinished) == (3, 3)  # p1 and p2 lack votes, p3 has none
    assert (result.a_wins, result.ties, result.b_wins) == (2, 1, 0)
    assert result.agreement == {"complete": 1, "partial": 0, "split": 1}  # one vote agrees with nobody


def test_no_votes_are_no_result() -> None:
    (result,) = analyse(design_of(4, 5), votes_of([(5, 0)], question="faithfulness"))
    assert (result.votes, result.pairs, result.unfinished) == (0, 0, 4)
    assert math.isnan(result.win_rate_a.value) and math.isnan(result.kappa) and math.isnan(result.left_share.value)
    assert result.preferred is None
