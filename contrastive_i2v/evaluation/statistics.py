"""How sure a number is: 95 % intervals by resampling the clips it is a mean of, or by Student's t over training seeds.

The bootstrap (Efron, 1979) draws N samples out of N with replacement, many times, and takes the 2.5 % and 97.5 %
quantiles of what comes out. Each call draws from a generator of its own, so the same numbers give the same interval.
"Sample" is what is independent: a clip, not its frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from contrastive_i2v.evaluation.results import Interval

CONFIDENCE = 0.95
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""For 1, 2, ... degrees of freedom."""
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
    tail = (1 - CONFIDENCE) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value=float(values.mean()), low=low, high=high)


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
    return bootstrap(least_squares(curves.double().cpu()), resamples=resamples, seed=seed)


def least_squares(curves: Tensor) -> Tensor:
    """The slope of each of `[N, F]`, as `slope` defines it: `[N]`."""
    frames = torch.arange(curves.shape[1], dtype=curves.dtype)
    centred = frames - frames.mean()
    return curves @ centred / centred.square().sum()


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Mean of a[s] - b[s] over S training seeds with the interval of Student's t.

        half width = t(0.975, S - 1) * std(a - b) / sqrt(S)

    Without bounds (NaN) for one seed. Raises ValueError for different lengths or none.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"a, b: expected the same number of seeds, at least one, got {len(a)} and {len(b)}")
    gaps = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    mean = float(gaps.mean())
    if len(a) == 1:
        return Interval(value=mean)
    half = student_quantile(len(a) - 1) * float(gaps.std()) / math.sqrt(len(a))
    return Interval(value=mean, low=mean - half, high=mean + half)


def student_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t for so many degrees of freedom; beyond 9 that of 9, on the safe side."""
    return T_QUANTILES[min(freedom, len(T_QUANTILES)) - 1]


def _resamples(count: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Indices `[resamples, count]`, in pieces of rows."""
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        yield torch.randint(count, (min(at_once, resamples - start), count), generator=generator)
