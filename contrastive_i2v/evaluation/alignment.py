"""How well features match one by one: prompts and frames in CLIP's space, predictions and their own targets in another.

Everything is float64. A vector of zeros has cosine 0 with every other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each pair: `a[..., :].b[..., :] / (|a| |b|)`.

    Args:
        a: `[N, d]`; more leading dimensions may stand before.
        b: the same shape, or one that broadcasts to it.

    Returns:
        `[N]` float64 in [-1, 1].

    Raises:
        ValueError: naming a or b: another d, no rows, or a NaN or infinity.
    """
    for name, features in (("a", a), ("b", b)):
        if features.ndim < 2 or features.numel() == 0:
            raise ValueError(f"{name}: expected features [N, d] with N, d >= 1, got {list(features.shape)}")
        if not bool(features.isfinite().all()):
            row = features.isfinite().all(dim=-1).logical_not().nonzero()[0].tolist()
            raise ValueError(f"{name}: features hold NaN or infinity, the first at {row}")
    sizes = list(zip(a.shape[:-1], b.shape[:-1], strict=False))
    if a.ndim != b.ndim or a.shape[-1] != b.shape[-1] or any(m != n and 1 not in (m, n) for m, n in sizes):
        raise ValueError(f"a, b: expected features in pairs, [N, d] each, got {list(a.shape)} and {list(b.shape)}")
    return (normalised(a) * normalised(b)).sum(dim=-1).clamp(-1, 1)


def clipsim(frames: Tensor, text: Tensor) -> Tensor:
    """CLIPSIM (Wu et al., 2021): `mean over the frames f of cos(frames[n, f], text[n])`.

    Args:
        frames: `[N, F, d]`.
        text: `[N, d]`.

    Returns:
        `[N]` float64.
    """
    if frames.ndim != 3 or text.ndim != 2 or len(frames) != len(text):
        raise ValueError(
            f"frames, text: expected [N, F, d] and [N, d], got {list(frames.shape)} and {list(text.shape)}"
        )
    return cosine(frames, text[:, None]).mean(dim=1)


def retrieval_hits(predicted: Tensor, candidates: Tensor, *, groups: Tensor | None = None, k: int = 1) -> Tensor:
    """Whether each prediction finds its own target among all: row i's candidate i is one of its k nearest by cosine.

    A tie with another candidate counts against it, so predictions that are all alike hit nothing.

    Args:
        predicted: `[N, D]`.
        candidates: `[N, D]`; row i is the true one of `predicted[i]`.
        groups: int `[N]`, say the clip a row is from. Candidates of a row's own group, other than its own, are left out
            of its ranking: finding the same thing again is no error.

    Returns:
        `[N]` bool. Chance is about k / N.

    Raises:
        ValueError: shapes that don't match, a NaN or infinity, or k < 1.
    """
    if predicted.ndim != 2 or predicted.shape != candidates.shape:
        raise ValueError(
            f"predicted, candidates: expected the same [N, D], got {list(predicted.shape)} and {list(candidates.shape)}"
        )
    if groups is not None and groups.shape != predicted.shape[:1]:
        raise ValueError(f"groups: expected [{len(predicted)}], got {list(groups.shape)}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    for name, features in (("predicted", predicted), ("candidates", candidates)):
        if features.numel() == 0 or not bool(features.isfinite().all()):
            raise ValueError(f"{name}: expected finite features [N, D] with N, D >= 1, got {list(features.shape)}")
    similarity = normalised(predicted) @ normalised(candidates).T  # [N, N]
    rivals = ~torch.eye(len(predicted), dtype=torch.bool, device=predicted.device)
    if groups is not None:
        rivals &= groups[:, None] != groups[None, :]
    ahead = (similarity >= similarity.diagonal()[:, None]) & rivals
    return ahead.sum(dim=1) < k


def normalised(features: Tensor) -> Tensor:
    """`[..., d]` at length 1, in float64."""
    return F.normalize(features.double(), dim=-1)
