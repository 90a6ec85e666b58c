"""Trajectories in a plane: where the latents of true and generated videos lie, by PCA and UMAP."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.evaluation.latent_space._checks import as_trajectories
from contrastive_i2v.evaluation.results import LatentMap

FIT_LATENTS = 1024
"""Latents of each set that a map is fitted on, at most: whole clips, drawn by the seed. The others are placed after."""
UMAP_EPOCHS = 200
"""From a start by PCA; UMAP's own 500 are for a random one."""
UMAP_COMPONENTS = 50
"""Principal components that UMAP sees, so that its cost doesn't grow with D."""


@torch.no_grad()
def latent_maps(generated: Tensor, truth: Tensor, *, seed: int, umap: bool = True) -> list[LatentMap]:
    """Both sets of trajectories in the same plane, once by PCA and, where umap-learn is installed, once by UMAP.

        PCA:  y = (z - mean(truth)) A,  A = the two directions in which the truth varies most
        UMAP: fitted on both sets together, in their 50 first principal components, begun from the first two

    PCA is linear: straight paths stay straight, equal distances in the plane are comparable, and a generated clip
    that leaves the truth's plane seems to stop. UMAP keeps neighbours together; its distances and sizes mean little.

    Cost: maps are fitted on at most 1,024 latents of each set, whole clips drawn by the seed. The rest are projected
    (PCA), or placed at the mean of their 5 nearest fitted latents (UMAP, whose own way costs more than the fit).
    Equal arguments give equal maps on one machine (UMAP runs in one thread for that).

    Args:
        generated: [N, F, D] or [N, F, C, h, w].
        truth: the same shape.
        seed: of the drawn clips, and of UMAP.
        umap: False leaves UMAP out: it takes 20 to 30 s of one core, most of it to import and compile.

    Returns:
        [PCA] or [PCA, UMAP]; UMAP is left out below 8 latents in all, too few for neighbourhoods.

    Raises:
        ValueError: shapes that differ, NaN or infinity.

    Source: McInnes, Healy and Melville, "UMAP: Uniform Manifold Approximation and Projection" (2018).
    """
    ours, true = as_trajectories("generated", generated.cpu()), as_trajectories("truth", truth.cpu())
    if ours.shape != true.shape:
        raise ValueError(
            f"generated, truth: expected the same shape, got {list(generated.shape)} and {list(truth.shape)}"
        )
    clips, frames, _ = true.shape
    count = min(clips, max(1, FIT_LATENTS // frames))
    chosen = torch.randperm(clips, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    mean, axes, explained = principal_axes(true[chosen].flatten(0, 1), 2)
    maps = [_as_map("PCA", _project(ours, mean, axes), _project(true, mean, axes), explained.tolist())]

    both = torch.cat([ours, true])  # [2 N, F, D]
    fitted = torch.cat([chosen, chosen + clips])
    plane = _umap(both, fitted, seed) if umap else None
    return maps if plane is None else [*maps, _as_map("UMAP", plane[:clips], plane[clips:], [])]


def principal_axes(points: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `[D]`, the `count` directions of most variance `[count, D]` and their shares of it `[count]`, float64.

    Directions are unit vectors whose entry of largest magnitude is positive; those without variance are zero.
    """
    points = points.double()
    mean = points.mean(dim=0)
    centred = points - mean  # [M, D]
    wide = len(centred) <= centred.shape[1]  # then the M x M matrix has the same spectrum, and is the smaller one
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = values.flip(0), vectors.flip(1)  # largest first
    axes = torch.zeros(count, centred.shape[1], dtype=torch.float64)
    shares = torch.zeros(count, dtype=torch.float64)
    total = values.clamp_min(0).sum()
    for i in range(min(count, len(values))):
        if values[i] > 1e-12 * total:
            axis = vectors[:, i] @ centred if wide else vectors[:, i]
            axes[i] = axis / axis.norm() * axis[axis.abs().argmax()].sign()
            shares[i] = values[i] / total
    return mean, axes, shares


def _project(latents: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """`[N, F, D]` -> `[N, F, count]`, a clip in float64 at a time."""
    return torch.stack([(clip.double() - mean) @ axes.T for clip in latents])


def _umap(latents: Tensor, fitted: Tensor, seed: int) -> Tensor | None:
    """`[N, F, D]` -> `[N, F, 2]`; None without umap-learn, or with too little to map."""
    clips, frames, _ = latents.shape
    if clips * frames < 8:
        return None
    try:
        from umap import UMAP
    except ImportError:
        return None
    mean, axes, shares = principal_axes(latents[fitted].flatten(0, 1), UMAP_COMPONENTS)
    points = _project(latents, mean, axes)  # [N, F, 50]
    if not shares.any():
        return torch.zeros(clips, frames, 2, dtype=torch.float64)  # all latents are the same
    known = points[fitted].flatten(0, 1)  # [M, 50]
    start = known[:, :2] * (10 / known[:, :2].abs().max())  # the extent that UMAP's own starts have
    neighbours = min(15, len(known) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its single thread, and that it can't place other points
        mapper = UMAP(
            n_neighbors=neighbours,
            precomputed_knn=_itself_and_nearest(known, neighbours),  # compiling UMAP's own search takes 12 s
            n_epochs=UMAP_EPOCHS,
            init=start.numpy(),
            random_state=seed,
            n_jobs=1,
        )
        placed = torch.from_numpy(mapper.fit_transform(known.numpy())).double()  # [M, 2]
    nearest = [torch.cdist(clip, known).topk(min(5, len(known)), largest=False).indices for clip in points]
    plane = torch.stack([placed[index].mean(dim=1) for index in nearest])  # [N, F, 2]
    plane[fitted] = placed.view(-1, frames, 2)
    return plane


def _itself_and_nearest(points: Tensor, count: int) -> tuple[Any, Any, None]:
    """Indices and distances `[M, count]` of each point and its nearest, as UMAP takes them, and no search index."""
    distances = torch.cdist(points, points).fill_diagonal_(-1)  # itself comes first, also before its duplicates
    nearest = distances.topk(count, largest=False)
    return nearest.indices.numpy(), nearest.values.clamp_min(0).float().numpy(), None


def _as_map(method: str, points: Tensor, truth: Tensor, explained: list[float]) -> LatentMap:
    return LatentMap(method=method, points=points.tolist(), truth=truth.tolist(), explained=explained)
