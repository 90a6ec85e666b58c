"""Metrics over pixels against the true video, frame by frame, in float64.

Videos are `[N, F, 3, H, W]` in [-1, 1]; frame 0 is the given one. N clips give a mean and its standard error.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frame_mse(videos: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each frame.

        error[n, f] = mean over (3, H, W) of (videos[n, f] - truth[n, f])^2

    Args:
        videos: [N, F, 3, H, W] in [-1, 1].
        truth: the same shape.

    Returns:
        [N, F] float64, between 0 and 4.

    Raises:
        ValueError: the shapes differ or aren't [N, F, 3, H, W].
    """
    _check(videos, truth)
    return (videos.double() - truth.double()).square().mean(dim=(2, 3, 4))


def motion(videos: Tensor) -> Tensor:
    """How much a video changes from frame to frame: `mean over (F - 1, 3, H, W) of |x[f + 1] - x[f]|`.

    Args:
        videos: [N, F, 3, H, W] with F >= 2.

    Returns:
        [N] float64.
    """
    if videos.ndim != 5 or videos.shape[1] < 2:
        raise ValueError(f"videos: expected [N, F, 3, H, W] with F >= 2, got {list(videos.shape)}")
    return videos.double().diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


def motion_ratio(videos: Tensor, truth: Tensor) -> tuple[float, float]:
    """The motion of generated videos against the truth's: 1 = as much, near 0 = they froze.

        ratio = sum_n motion(videos)[n] / sum_n motion(truth)[n]
        standard error = sqrt(sum_n (motion(videos)[n] - ratio * motion(truth)[n])^2 / (N (N - 1)))
                         / mean_n motion(truth)[n]

    A ratio of sums, so that a clip that hardly moves doesn't weigh as much as one that does; the error is the
    usual one of a ratio estimator (Cochran, "Sampling Techniques", 3rd ed., chapter 6).

    Returns:
        (ratio, standard error); NaN where the truth doesn't move, and the error for one clip.

    Raises:
        ValueError: the shapes differ or aren't [N, F, 3, H, W] with F >= 2.
    """
    _check(videos, truth)
    ours, true = motion(videos), motion(truth)
    if not float(true.sum()) > 0:
        return float("nan"), float("nan")
    ratio = ours.sum() / true.sum()
    count = len(ours)
    spread = (ours - ratio * true).square().sum() / (count * (count - 1)) if count > 1 else torch.tensor(torch.nan)
    return float(ratio), float(spread.sqrt() / true.mean())


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of `values [N]` and its standard error, `std / sqrt(N)` with N - 1 in the variance; NaN for N = 1."""
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values: expected [N] with N >= 1, got {list(values.shape)}")
    values = values.double()
    if len(values) == 1:
        return float(values[0]), float("nan")
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def _check(videos: Tensor, truth: Tensor) -> None:
    if videos.ndim != 5 or videos.shape != truth.shape:
        raise ValueError(
            f"videos, truth: expected the same [N, F, 3, H, W], got {list(videos.shape)} and {list(truth.shape)}"
        )
