"""Latents as the analyses of this folder take them: `[N, F, D]`, finite."""

from __future__ import annotations

import torch
from torch import Tensor


def as_trajectories(name: str, latents: Tensor) -> Tensor:
    """`[N, F, D]` or `[N, F, C, h, w]` -> `[N, F, D]`. Raises ValueError naming `name` and the first bad clip."""
    if latents.ndim not in (3, 5) or 0 in latents.shape:
        raise ValueError(
            f"{name}: expected [N, F, D] or [N, F, C, h, w] with no empty dimension, got {list(latents.shape)}"
        )
    check_finite(name, latents)
    return latents.flatten(2)


def check_finite(name: str, latents: Tensor) -> None:
    """Raises ValueError naming the first clip with a value that isn't finite."""
    bad = ~torch.isfinite(latents).flatten(1).all(dim=1)
    if bad.any():
        raise ValueError(f"{name}: clip {int(bad.nonzero()[0])} holds NaN or infinity; expected finite latents")
