"""How sure a number is: 95 % intervals by resampling what it is a mean or a function of.

The bootstrap (Efron, 1979) draws N samples out of N with replacement, many times, and takes the 2.5 % and 97.5 %
quantiles of what comes out. Each call draws from a generator of its own, so the same numbers give the same interval.
"Sample" is what is independent: a clip, not its frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from contrastive_i2v.evaluation.distribution import frechet_distance, frechet_influence
from contrastive_i2v.evaluation.results import Interval

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959964
"""97.5 % of a normal distribution."""
DRAWN_AT_ONCE = 1 << 22
"""Indices held in memory: 32 MB."""


def bootstrap(values: Tensor, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values [N]` with its interval.

    Without bounds (NaN) for N = 1, or where a value is infinite, as the PSNR of equal frames.

    Raises:
        ValueError: not `[N]` with N >= 1, or a NaN.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values: expected [N] with N >= 1, got {list(values.shape)}")
    if bool(values.isnan().any()):
        raise ValueError(f"values: {int(values.isnan().sum())} of {len(values)} are NaN")
    values = values.double().cpu()
    if len(values) == 1 or not bool(values.isfinite().all()):
        return Interval(value=float(values.mean()))
    means = torch.cat([values[rows].mean(dim=1) for rows in _resamples(len(values), resamples, seed)])
    return _percentiles(float(values.mean()), means)


def bootstrap_statistic(
    count: int, statistic: Callable[[Tensor], float], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`statistic` of `count` samples with its interval.

    For a statistic that duplicates push to one side, as distances between distributions, the bounds are pushed with it:
    `bootstrap_frechet` is for those.

    Args:
        count: N.
        statistic: from indices `[N]` into the samples, with repetitions, to a number.

    Raises:
        ValueError: count < 1.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1 sample, got {count}")
    value = statistic(torch.arange(count))
    if count == 1:
        return Interval(value=value)
    drawn = [statistic(rows) for some in _resamples(count, resamples, seed) for rows in some]
    return _percentiles(value, torch.tensor(drawn, dtype=torch.float64))


def paired_bootstrap(a: Tensor, b: Tensor, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `a - b` over the same N clips, with its interval: what both find hard cancels.

    Raises:
        ValueError: not the same `[N]` with N >= 1, or a NaN.
    """
    if a.shape != b.shape:
        raise ValueError(f"a, b: expected a value a clip in both, got {list(a.shape)} and {list(b.shape)}")
    return bootstrap(a.double() - b.double(), resamples=resamples, seed=seed)


def slope(curves: Tensor, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """How much a metric changes a frame: the least squares slope of each clip's curve, then their mean.

        slope[n] = sum_f (f - mean f) curves[n, f] / sum_f (f - mean f)^2

    Args:
        curves: `[N, F]` with F >= 2, evenly spaced in time.

    Raises:
        ValueError: another shape, or a NaN.
    """
    if curves.ndim != 2 or curves.shape[1] < 2:
        raise ValueError(f"curves: expected [N, F] with F >= 2, got {list(curves.shape)}")
    frames = torch.arange(curves.shape[1], dtype=torch.float64)
    centred = frames - frames.mean()
    return bootstrap(curves.double().cpu() @ centred / centred.square().sum(), resamples=resamples, seed=seed)


def bootstrap_frechet(x: Tensor, y: Tensor, *, block: int = 1, paired: bool = False) -> Interval:
    """Frechet distance with the interval of the bootstrap's linear limit, the infinitesimal jackknife.

        influence_x[i], influence_y[j] = frechet_influence(x, y)
        variance = var(influence_x) / N + var(influence_y) / M
        interval = frechet_distance(x, y) -+ 1.96 sqrt(variance), not below 0

    Resampling itself is no use here: a sample with duplicates has fewer distinct rows, hence a larger distance, and the
    percentiles lie above the estimate, often beside it. The linear limit has no duplicates, takes one eigenvalue
    decomposition instead of thousands and no random numbers.

    The interval is of the *expected distance at this N*: what other samples of the same size would give. It doesn't
    hold the distance of infinitely many samples, from which that is far while N is of the order of d; see
    `extrapolated_frechet_distance`.

    Args:
        x: `[N, d]`.
        y: `[M, d]`.
        block: consecutive rows that belong together, as the frames of a clip; blocks are what is independent.
        paired: row i of both comes from the same clip, so the two aren't independent.

    Returns:
        Without bounds (NaN) for a single block.

    Raises:
        ValueError: as `frechet_distance`; N or M isn't a multiple of `block`; paired with N != M.
    """
    value = frechet_distance(x, y)
    of_x, of_y = (_blocks(one, block) for one in frechet_influence(x, y))
    low, high = _bounds(value, [of_x, of_y], paired)
    return Interval(value=value, low=low if math.isnan(low) else max(0.0, low), high=high)


def bootstrap_frechet_difference(a: Tensor, b: Tensor, truth: Tensor, *, block: int = 1) -> Interval:
    """`frechet_distance(a, truth) - frechet_distance(b, truth)` with its interval, over the same N clips in all three.

    As `bootstrap_frechet`, paired: what makes a clip typical or not for both methods cancels, and so does the larger
    part of the distances' dependence on N.

    Args:
        a: `[N, d]`.
        b: `[N, d]`; row i comes from the same clip as a's.
        truth: `[N, d]`, likewise.
        block: consecutive rows that belong together.
    """
    value = frechet_distance(a, truth) - frechet_distance(b, truth)
    of_a, with_a = (_blocks(one, block) for one in frechet_influence(a, truth))
    of_b, with_b = (_blocks(one, block) for one in frechet_influence(b, truth))
    low, high = _bounds(value, [of_a, -of_b, with_a, -with_b], paired=True)
    return Interval(value=value, low=low, high=high)


def _blocks(influence: Tensor, block: int) -> Tensor:
    if block < 1 or len(influence) % block:
        raise ValueError(f"block: expected one that divides the {len(influence)} rows, got {block}")
    return influence.view(-1, block).mean(dim=1).cpu()


def _bounds(value: float, influences: list[Tensor], paired: bool) -> tuple[float, float]:
    """Of a number that the means of `influences` move: these are of the same blocks if paired, independent if not."""
    if paired:
        sizes = [len(one) for one in influences]
        if len(set(sizes)) > 1:
            raise ValueError(f"paired: expected the same number of clips everywhere, got {sizes}")
        influences = [torch.stack(influences).sum(dim=0)]
    if any(len(one) < 2 for one in influences):
        return math.nan, math.nan
    half = NORMAL_QUANTILE * math.sqrt(sum(float(one.var()) / len(one) for one in influences))
    return value - half, value + half


def _resamples(count: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Indices `[resamples, count]`, in pieces of rows."""
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        yield torch.randint(count, (min(at_once, resamples - start), count), generator=generator)


def _percentiles(value: float, drawn: Tensor) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = drawn.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value=value, low=low, high=high)
