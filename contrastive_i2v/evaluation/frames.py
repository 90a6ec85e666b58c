"""Metrics over pixels against the true video, frame by frame, in float64.

Videos are `[N, F, 3, H, W]` in [-1, 1]; frame 0 is the given one.
"""

from __future__ import annotations

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
    if videos.ndim != 5 or videos.shape != truth.shape:
        raise ValueError(
            f"videos, truth: expected the same [N, F, 3, H, W], got {list(videos.shape)} and {list(truth.shape)}"
        )
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
