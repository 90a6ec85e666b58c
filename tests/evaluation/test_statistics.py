"""Intervals: hand-made cases, and how often they hold the truth on data whose truth is known."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation.results import Interval
from contrastive_i2v.evaluation.statistics import (
    bootstrap,
    paired_bootstrap,
    paired_difference,
    slope,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_bootstrap_of_the_mean_is_as_wide_as_theory_says() -> None:
    """Mean of 400 values: mean -+ 1.96 std / 20."""
    values = 5 + 2 * normal(400)
    found = bootstrap(values, resamples=4000)
    half = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()), rel=1e-14)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=0.06)


def test_bootstrap_of_two_values_by_hand() -> None:
    """Means 0, 1/2 and 1 with odds 1 : 2 : 1, so both tails are beyond 2.5 %."""
    assert bootstrap(torch.tensor([0.0, 1.0])) == Interval(value=0.5, low=0.0, high=1.0)
    assert bootstrap(torch.full((7,), 3.0)) == Interval(value=3.0, low=3.0, high=3.0)


def test_the_same_seed_gives_the_same_interval_whatever_was_drawn_before() -> None:
    values = normal(50)
    first = bootstrap(values)
    torch.rand(3)
    state = torch.random.get_rng_state()
    assert bootstrap(values) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert bootstrap(values, seed=1) != first


def test_memory_is_bounded_by_pieces_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(50)
    whole = bootstrap(values, resamples=100)
    monkeypatch.setattr("contrastive_i2v.evaluation.statistics.DRAWN_AT_ONCE", 50 * 7)
    assert bootstrap(values, resamples=100) == whole


def test_what_has_no_interval() -> None:
    alone = bootstrap(torch.tensor([2.5]))
    assert alone.value == 2.5
    assert math.isnan(alone.low) and math.isnan(alone.high)
    perfect = bootstrap(torch.tensor([40.0, math.inf]))  # PSNR of equal frames
    assert perfect.value == math.inf
    assert math.isnan(perfect.low)
    with pytest.raises(ValueError, match="values: 1 of 2 are NaN"):
        bootstrap(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match=r"values: expected \[N\] with N >= 1, got \[0\]"):
        bootstrap(torch.empty(0))
    with pytest.raises(ValueError, match="resamples: expected at least 1, got 0"):
        bootstrap(torch.ones(3), resamples=0)


def test_coverage_of_the_mean() -> None:
    """95 % of intervals hold the truth; the percentile interval of 50 values is known to be a little short."""
    held = 0
    for seed in range(300):
        found = bootstrap(normal(50, seed=seed) + 1, resamples=400, seed=seed)
        held += found.low <= 1 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_pairing_cancels_what_both_find_hard() -> None:
    """Clips differ by 10, methods by 0.1: lost between unpaired intervals, plain in the paired one."""
    hard, noise = 10 * normal(60), 0.05 * normal(60, seed=1)
    a, b = hard + 0.1 + noise, hard
    found = paired_bootstrap(a, b)
    assert found.value == pytest.approx(0.1 + float(noise.mean()))
    assert 0 < found.low < found.high < 0.2
    assert bootstrap(a).low < bootstrap(b).high
    with pytest.raises(ValueError, match=r"a, b: .* got \[60\] and \[59\]"):
        paired_bootstrap(a, b[1:])


def test_slope_is_a_frame_and_over_clips() -> None:
    curves = torch.tensor([[1.0, 3.0, 5.0, 7.0], [0.0, 0.0, 0.0, 0.0], [4.0, 4.0, 7.0, 7.0]])
    # 2, 0, and (-1.5, -0.5, 0.5, 1.5).(4, 4, 7, 7) / 5 = 1.2
    found = slope(curves)
    assert found.value == pytest.approx(3.2 / 3)
    assert (found.low, found.high) == pytest.approx((0, 2))
    shifted = slope(curves + 100)
    assert (shifted.value, shifted.low) == pytest.approx((found.value, found.low), abs=1e-9)
    with pytest.raises(ValueError, match=r"curves: expected \[N, F\] with F >= 2, got \[3, 1\]"):
        slope(curves[:, :1])


def test_paired_difference_is_students_interval() -> None:
    found = paired_difference([1.0, 2.0, 3.0], [0.5, 1.0, 2.4])
    half = 4.303 * statistics.stdev([0.5, 1.0, 0.6]) / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.7 - half, 0.7 + half))
    alone = paired_difference([1.0], [0.0])
    assert alone.value == 1 and math.isnan(alone.low) and math.isnan(alone.high)
    many = paired_difference([0.0, 1.0] * 10, [0.0] * 20)
    assert many.high - many.value == pytest.approx(2.262 * statistics.stdev([0.0, 1.0] * 10) / math.sqrt(20))
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1.0, 2.0], [1.0])


def test_pairing_removes_noise_that_forms_share() -> None:
    shared = [0.1, 0.9, 0.4, 0.6]
    found = paired_difference(shared, [x + 0.01 for x in shared])
    assert found.high < 0
