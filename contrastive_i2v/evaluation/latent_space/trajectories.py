"""How smoothly a video moves through latent space: speed, and how much its path turns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_i2v.evaluation.latent_space._checks import as_trajectories

STANDSTILL = 1e-6
"""A step shorter than this share of the latent's norm is rounding: it has no direction."""


@dataclass(frozen=True)
class TrajectorySmoothness:
    """float64, one value a clip and step; `.nanmean(1)` is one a clip, `.nanmean(0)` one a step."""

    speed: Tensor
    """`[N, F - 1]`, latent units a frame; entry f is the step from frame f to f + 1."""
    curvature: Tensor
    """`[N, F - 2]`, radians in [0, pi]: 0 = straight on, pi = back; NaN where a step stands still."""
    straightness: Tensor
    """`[N]` in [0, 1]: 1 = a straight line, 0 = back where it began; NaN where nothing moves."""


@torch.no_grad()
def trajectory_smoothness(latents: Tensor) -> TrajectorySmoothness:
    """Speed, curvature and straightness of latent trajectories.

        v[f] = z[f + 1] - z[f]
        speed[f]     = |v[f]|
        curvature[f] = angle between v[f] and v[f + 1]
        straightness = |z[F - 1] - z[0]| / sum_f |v[f]|

    The norm is over all of a latent's values, so it grows with the square root of their number: compare within a
    model. Noise between frames alone, z[f] independent, turns by arccos(-1/2) = 2.09 on average; a curvature near
    that is jitter, not motion.

    Args:
        latents: [N, F, C, h, w] or [N, F, D] with F >= 2; for F = 2 curvature is empty.

    Raises:
        ValueError: another shape, NaN or infinity.

    Source: curvature as in Henaff, Goris and Simoncelli, "Perceptual straightening of natural videos", Nature
    Neuroscience 22 (2019).
    """
    path = as_trajectories("latents", latents)  # [N, F, D]
    if path.shape[1] < 2:
        raise ValueError(f"latents: expected at least 2 frames, got {list(latents.shape)}")
    clips = [_measure(clip.double().cpu()) for clip in path]  # a clip at a time: one is in float64
    speed, curvature, straightness = (torch.stack(values) for values in zip(*clips, strict=True))
    return TrajectorySmoothness(speed, curvature, straightness)


def _measure(path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    velocity = path.diff(dim=0)  # [F - 1, D]
    speed = velocity.norm(dim=1)
    norms = path.norm(dim=1)
    moves = speed > STANDSTILL * torch.maximum(norms[1:], norms[:-1])
    direction = velocity / torch.where(moves, speed, torch.nan)[:, None]
    before, after = direction[:-1], direction[1:]
    # Kahan's form: exact near 0 and pi, where an arccos loses half the digits
    curvature = 2 * torch.atan2((after - before).norm(dim=1), (after + before).norm(dim=1))
    straightness = (path[-1] - path[0]).norm() / torch.where(moves.any(), speed.sum(), torch.nan)
    return speed, curvature, straightness
