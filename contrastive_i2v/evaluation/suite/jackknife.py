"""How sure a metric of the whole set is: leave out a tenth of the clips at a time.

The bootstrap's duplicates push distances between distributions up, by many times their spread; leaving out doesn't.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from contrastive_i2v.evaluation.results import Interval
from contrastive_i2v.evaluation.statistics import student_quantile

GROUPS = 10
"""Parts that the clips are dealt into: clip n is in part n mod 10."""


def leave_out(count: int, statistic: Callable[[Tensor], float]) -> Tensor:
    """`statistic` of the clips that stay when each part is left out: `[G]`, G = min(count, 10); empty below 3 clips.

    The parts are the same for every method, so that differences of these are differences on the same clips.

    Args:
        count: N clips.
        statistic: from indices into the clips to a number.
    """
    return leave_out_each(count, lambda kept: torch.tensor(statistic(kept), dtype=torch.float64))


def leave_out_each(count: int, statistic: Callable[[Tensor], Tensor]) -> Tensor:
    """`leave_out` of several numbers at once, `statistic` from indices to `[...]`: `[G, ...]`."""
    clips = torch.arange(count)
    if count < 3:
        return statistic(clips)[None][:0]
    groups = min(count, GROUPS)
    return torch.stack([statistic(clips[clips % groups != g]) for g in range(groups)])


def interval(value: float, left_out: Tensor, *, least: float = -math.inf, most: float = math.inf) -> Interval:
    """95 % interval of `value` by the delete-a-group jackknife.

        error^2 = (G - 1) / G * sum_g (left_out[g] - mean(left_out))^2,  interval = value +- t(0.975, G - 1) error

    Without bounds where `left_out` is empty or isn't finite; `least` and `most` are the bounds of the
    values that the metric can have.

    Source: Shao and Wu, "A general theory for jackknife variance estimation" (1989); Kott, "The delete-a-group
    jackknife" (2001).
    """
    count = len(left_out)
    if count < 2 or not math.isfinite(value) or not bool(left_out.isfinite().all()):
        return Interval(value=value)
    error = float(((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt())
    half = student_quantile(count - 1) * error
    return Interval(value=value, low=max(value - half, least), high=min(value + half, most))
