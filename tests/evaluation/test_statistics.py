"""Intervals: hand-made cases, and how often they hold the truth on data whose truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation.distribution import frechet_distance
from contrastive_i2v.evaluation.results import Interval
from contrastive_i2v.evaluation.statistics import (
    bootstrap,
    bootstrap_frechet,
    bootstrap_frechet_difference,
    bootstrap_statistic,
    paired_bootstrap,
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


def test_any_statistic_of_the_indices() -> None:
    values = normal(200)
    whole = bootstrap_statistic(200, lambda rows: float(values[rows].mean()), resamples=300, seed=4)
    mean = bootstrap(values, resamples=300, seed=4)
    assert (whole.value, whole.low, whole.high) == pytest.approx((mean.value, mean.low, mean.high), rel=1e-12)
    spread = bootstrap_statistic(200, lambda rows: float(values[rows].std()), resamples=300)
    assert spread.low < 1 < spread.high
    assert spread.high - spread.low == pytest.approx(2 * 1.96 / 400**0.5, rel=0.3)
    assert math.isnan(bootstrap_statistic(1, lambda rows: 2.0).low)
    with pytest.raises(ValueError, match="count: expected at least 1 sample, got 0"):
        bootstrap_statistic(0, lambda rows: 0.0)


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


# --- Frechet distance


def scaled(rows: int, dimension: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    spread = torch.arange(1, dimension + 1, dtype=torch.float64) ** -0.5
    return normal(rows, dimension, seed=seed) * spread * scale + shift


@pytest.mark.parametrize(("rows", "dimension"), [(20, 48), (100, 8)], ids=["N < d", "N > d"])
def test_the_interval_holds_the_expected_distance(rows: int, dimension: int) -> None:
    """The expectation from 300 independent pairs; 95 % wanted."""

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        return scaled(rows, dimension, 2 * seed), scaled(rows, dimension, 2 * seed + 1, 1.3, 0.2)

    expected = sum(frechet_distance(*drawn(seed)) for seed in range(300)) / 300
    held = 0
    for seed in range(300, 450):
        found = bootstrap_frechet(*drawn(seed))
        held += found.low <= expected <= found.high
    assert 0.90 <= held / 150 <= 1.0


def test_why_it_does_not_resample() -> None:
    """Duplicates leave fewer distinct rows, so nearly every resample is further apart than the samples are."""
    x, y = scaled(20, 48, 0), scaled(20, 48, 1)
    resampled = bootstrap_statistic(20, lambda rows: frechet_distance(x[rows], y[rows]), resamples=200)
    ours = bootstrap_frechet(x, y)
    assert resampled.low > ours.low
    assert (resampled.low + resampled.high) / 2 > ours.high


def test_the_interval_is_about_the_distance_and_narrows_with_n() -> None:
    small = bootstrap_frechet(scaled(60, 6, 0), scaled(60, 6, 1, shift=1.0))
    large = bootstrap_frechet(scaled(960, 6, 0), scaled(960, 6, 1, shift=1.0))
    assert small.low < small.value < small.high
    assert small.value == frechet_distance(scaled(60, 6, 0), scaled(60, 6, 1, shift=1.0))
    assert (large.high - large.low) / (small.high - small.low) == pytest.approx(1 / 4, rel=0.3)
    same = bootstrap_frechet(scaled(60, 6, 0), scaled(60, 6, 1))
    assert same.low >= 0


def test_frames_of_a_clip_are_not_independent() -> None:
    """Every row four times: as wide as with the clips alone, where four times the rows would halve it."""
    x, y = scaled(80, 6, 0), scaled(80, 6, 1, shift=0.5)
    copies = [one.repeat_interleave(4, dim=0) for one in (x, y)]
    clips, blocks, rows = bootstrap_frechet(x, y), bootstrap_frechet(*copies, block=4), bootstrap_frechet(*copies)
    assert (blocks.high - blocks.low) / (clips.high - clips.low) == pytest.approx(1, rel=0.03)
    assert (rows.high - rows.low) / (clips.high - clips.low) == pytest.approx(0.5, rel=0.03)
    with pytest.raises(ValueError, match="block: expected one that divides the 80 rows, got 3"):
        bootstrap_frechet(x, y, block=3)


def test_pairing_narrows_the_interval_of_a_constant_shift() -> None:
    """y is x and a shift, clip by clip: the distance is |shift|^2 whatever clips are drawn."""
    x = scaled(50, 6, 0)
    found = bootstrap_frechet(x, x + 0.5, paired=True)
    assert (found.low, found.high) == pytest.approx((1.5, 1.5), abs=1e-6)
    apart = bootstrap_frechet(x, x + 0.5)
    assert apart.high - apart.low > 1
    with pytest.raises(ValueError, match=r"paired: expected the same number of clips everywhere, got \[50, 49\]"):
        bootstrap_frechet(x, x[1:], paired=True)


def test_the_difference_of_two_methods_is_surer_than_either() -> None:
    """b repeats a's errors and adds a little; on the same clips that is plain, beside two separate intervals not."""
    truth = scaled(100, 12, 0)
    a = truth + 0.4 * normal(100, 12, seed=1) + 0.3
    b = a + 0.1
    found = bootstrap_frechet_difference(b, a, truth)
    assert found.value == pytest.approx(frechet_distance(b, truth) - frechet_distance(a, truth))
    assert 0 < found.low < found.high
    of_a, of_b = bootstrap_frechet(a, truth), bootstrap_frechet(b, truth)
    assert found.high - found.low < (of_b.high - of_b.low) / 2
    assert of_a.high > of_b.low
    back = bootstrap_frechet_difference(a, b, truth)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_one_block_has_no_interval() -> None:
    x, y = scaled(8, 4, 0), scaled(8, 4, 1)
    found = bootstrap_frechet(x, y, block=8)
    assert found.value == frechet_distance(x, y)
    assert math.isnan(found.low) and math.isnan(found.high)
