"""How the predicted latents of a clip cluster around their own source, among the other clips'.

The contrastive loss pulls a prediction to its clip and away from the others; this measures whether it did. More is not
better: a video that repeats its first frame scores full marks, so the yardstick is the true videos' own values. Latents
are compared by direction (cosine), as the loss compares them; scale and frame rate don't count. In float64, a slab of
the similarity matrix at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_i2v.evaluation.latent_space._checks import as_trajectories, check_finite

SLAB = 2**22
"""Entries of the similarity matrix held at a time (32 MB in float64), whatever N and F are."""
TIE = 1e-12
"""Cosines closer than this are the same to rounding."""


@dataclass(frozen=True)
class ClusterMetrics:
    """One value for each predicted latent: `.mean(1)` is one a clip, `.mean(0)` one a frame index."""

    neighbour_purity: Tensor
    """`[N, F]` in [0, 1]: share of the k nearest that belong to the same clip; by chance F / (N F + N - 1)."""
    silhouette: Tensor
    """`[N, F]` in [-1, 1]: 1 = tight and far from other clips, below 0 = nearer to another clip; NaN for N = 1."""
    alignment: Tensor
    """`[N, F]` in [0, 4]: squared distance to the own source on the unit sphere; 0 = the same direction."""
    uniformity: Tensor
    """`[F]`, at most 0: how clips spread over the sphere at this frame index, lower = more; NaN for N = 1."""
    source_uniformity: float
    """The same of the sources: what `uniformity` would be if predictions kept the sources' spread."""
    rank: Tensor
    """`[N, F]` from 1 to N: place of the own source among all sources by cosine; ties share their mean place."""

    @property
    def reciprocal_rank(self) -> Tensor:
        """`[N, F]`: 1 / rank; its mean is the mean reciprocal rank."""
        return 1 / self.rank


@torch.no_grad()
def cluster_metrics(predicted: Tensor, source: Tensor, *, k: int | None = None) -> ClusterMetrics:
    """Neighbour purity, silhouette, alignment, uniformity and positive rank of predicted latents.

    With x = z / |z|, clusters {source_n} and predicted_n (F + 1 members), and all N (F + 1) latents as the pool:

        purity[n, f]     = share of clip n among the k nearest to x[n, f], itself left out
        silhouette[n, f] = (b - a) / max(a, b),  a = mean distance to the rest of its cluster,
                           b = least mean distance to another cluster,  distance = 1 - cosine
        alignment[n, f]  = |x[n, f] - s[n]|^2
        uniformity[f]    = log mean over pairs n != m of exp(-2 |x[n, f] - x[m, f]|^2)
        rank[n, f]       = 1 + #{m: cos(x[n, f], s[m]) > cos(x[n, f], s[n])} + ties / 2

    Purity and silhouette say whether clips stand apart, the source being one member among F + 1; alignment and rank
    say whether it is their own source that predictions are near to. Latents that tie for the k-th place count in
    proportion (the expectation over breaking ties at random), so a model that collapses gets the purity of chance.

    Args:
        predicted: [N, F, D] or [N, F, C, h, w], generated latents alone: frame 0 of a rollout is the source, and
            would count as a perfect prediction, so pass `latents[:, 1:]`.
        source: [N, D] or [N, C, h, w], the latents they were generated from, `latents[:, 0]`.
        k: neighbours of the purity, 1 to F; None = F, the size of the rest of the cluster, so that 1 means that
            every cluster stands apart.

    Returns:
        float64 on the CPU.

    Raises:
        ValueError: shapes that don't fit, NaN or infinity, a latent that is zero (it has no direction), or k.

    Sources: silhouette from Rousseeuw (1987); alignment (alpha = 2) and uniformity (t = 2) from Wang and Isola,
    "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere" (2020),
    section 4.1.
    """
    predicted = as_trajectories("predicted", predicted.cpu())  # [N, F, D]
    clips, frames, size = predicted.shape
    if source.ndim not in (2, 4) or source.flatten(1).shape != (clips, size):
        raise ValueError(f"source: expected [N, D] or [N, C, h, w] with N {clips} and D {size}, got {[*source.shape]}")
    check_finite("source", source)
    k = frames if k is None else k
    if not 1 <= k <= frames:
        raise ValueError(f"k: expected 1 to {frames}, the predictions a clip, got {k}")
    points = predicted.flatten(0, 1)  # [N F, D]
    sources = source.cpu().flatten(1)  # [N, D]
    for name, values in (("predicted", points), ("source", sources)):
        if not (values != 0).any(dim=1).all():
            raise ValueError(f"{name}: holds a latent that is all zeros; expected a direction to compare")

    rows = max(1, SLAB // (len(points) + clips))
    slabs = [_slab(points, sources, frames, k, index) for index in torch.split(torch.arange(len(points)), rows)]
    purity, silhouette, alignment, kernel, rank = (
        torch.cat(part).view(clips, frames) for part in zip(*slabs, strict=True)
    )
    return ClusterMetrics(
        neighbour_purity=purity,
        silhouette=silhouette,
        alignment=alignment,
        uniformity=kernel.mean(dim=0).log(),
        source_uniformity=_uniformity(sources),
        rank=rank,
    )


def _slab(
    points: Tensor, sources: Tensor, frames: int, k: int, index: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five values `[R]` of predictions number `index` (clip * frames + frame)."""
    row, clip, frame = torch.arange(len(index)), index // frames, index % frames
    to_points = _cosines(points[index], points)  # [R, N F]
    to_sources = _cosines(points[index], sources)  # [R, N]
    by_clip = to_points.view(len(index), -1, frames)  # [R, N, F]

    own = to_sources[row, clip, None]  # [R, 1]
    gap = to_sources - own
    rank = 1 + (gap > TIE).sum(dim=1) + ((gap.abs() <= TIE).sum(dim=1) - 1) / 2

    kernel = (4 * by_clip[row, :, frame] - 4).exp()  # [R, N]: exp(-2 |x - y|^2), as |x - y|^2 = 2 - 2 cos
    kernel[row, clip] = 0
    kernel = kernel.sum(dim=1) / (len(sources) - 1)  # 0 / 0 = NaN for one clip

    similarity = by_clip.sum(dim=2) + to_sources  # [R, N], summed over each cluster
    within = 1 - (similarity[row, clip] - to_points[row, index]) / frames
    similarity[row, clip] = -torch.inf
    between = 1 - similarity.amax(dim=1) / (frames + 1)
    larger = torch.maximum(within, between)
    silhouette = torch.where(larger > TIE, (between - within) / larger, 0.0)  # one point for all: no structure

    to_points[row, index] = -torch.inf
    nearness = torch.cat([to_points, to_sources], dim=1)  # [R, N F + N]
    same = torch.cat([torch.arange(len(points)) // frames, torch.arange(len(sources))]) == clip[:, None]
    last = nearness.topk(k, dim=1).values[:, -1:]  # [R, 1]
    nearer, tied = nearness > last + TIE, (nearness - last).abs() <= TIE
    share = (k - nearer.sum(dim=1)) / tied.sum(dim=1)
    purity = ((nearer & same).sum(dim=1) + share * (tied & same).sum(dim=1)) / k
    return purity.double(), silhouette, (2 - 2 * own[:, 0]).clamp_min(0), kernel, rank.double()


def _cosines(rows: Tensor, pool: Tensor) -> Tensor:
    """`[R, D]`, `[P, D]` -> `[R, P]` float64; the pool is widened a block at a time."""
    rows = _unit(rows)
    blocks = torch.split(pool, max(1, SLAB // pool.shape[1]))
    return torch.cat([rows @ _unit(block).T for block in blocks], dim=1)


def _unit(latents: Tensor) -> Tensor:
    latents = latents.double()
    unit: Tensor = latents / torch.linalg.vector_norm(latents, dim=1, keepdim=True)
    return unit


def _uniformity(latents: Tensor) -> float:
    total = 0.0
    for index in torch.split(torch.arange(len(latents)), max(1, SLAB // len(latents))):
        kernel = (4 * _cosines(latents[index], latents) - 4).exp()
        kernel[torch.arange(len(index)), index] = 0
        total += float(kernel.sum())
    pairs = len(latents) * (len(latents) - 1)
    return float(torch.tensor(total / pairs, dtype=torch.float64).log()) if pairs else float("nan")
