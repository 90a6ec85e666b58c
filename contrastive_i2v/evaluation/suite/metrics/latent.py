"""Where videos lie in latent space: whether predictions find their target, how clips cluster, how smooth paths are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from contrastive_i2v.evaluation.alignment import retrieval_hits
from contrastive_i2v.evaluation.latent_space import (
    ClusterMetrics,
    cluster_metrics,
    latent_maps,
    trajectory_smoothness,
)
from contrastive_i2v.evaluation.results import LatentMap
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos, spread
from contrastive_i2v.evaluation.suite.scored import About, Scored, from_second, score_clips, score_generated, score_set

define = partial(About, group="Latent space")
CLIPS = 128
"""Clips that are compared with each other, at most: the work grows with their square."""
MAPPED_CLIPS = 32
RETRIEVAL = define(
    name="retrieval_accuracy",
    title="Retrieval accuracy",
    better="higher",
    definition="Share of generated latents whose nearest true latent of the same frame index, by cosine, is "
    "their own clip's; a mean over frames 1 to F - 1; by chance 1 / N.",
)
PURITY = define(
    name="neighbour_purity",
    title="Neighbour purity",
    better="truth",
    definition="Share of the F - 1 latents nearest to a generated one, by cosine among all clips' and their "
    "sources, that belong to its own clip.",
)
SILHOUETTE = define(
    name="silhouette",
    title="Silhouette",
    better="truth",
    definition="(b - a) / max(a, b), a the mean cosine distance of a latent to its own clip's, b to the "
    "nearest other clip's (Rousseeuw, 1987).",
)
ALIGNMENT = define(
    name="alignment",
    title="Alignment with the source",
    better="truth",
    definition="Squared distance on the unit sphere of a generated latent from its source frame's (Wang and "
    "Isola, 2020); 0 = nothing moved.",
)
UNIFORMITY = define(
    name="uniformity",
    title="Uniformity",
    better="truth",
    definition="log mean exp(-2 |x - y|^2) over pairs of clips at the same frame index, latents on the unit "
    "sphere (Wang and Isola, 2020); lower = clips lie further apart.",
)
RANK = define(
    name="source_rank",
    title="Mean reciprocal rank of the source",
    better="truth",
    definition="1 / rank of a clip's own source among all sources, by cosine to its generated latents.",
)
SPEED = define(
    name="latent_speed",
    title="Latent speed",
    better="truth",
    definition="|z_{t+1} - z_t| over all values of a latent.",
    unit="latent units a frame",
)
CURVATURE = define(
    name="latent_curvature",
    title="Latent curvature",
    better="truth",
    definition="Angle between consecutive steps of the trajectory (Henaff et al., 2019): 0 = straight on; "
    "independent noise alone gives 2.09.",
    unit="radians",
)
STRAIGHTNESS = define(
    name="latent_straightness",
    title="Straightness of the path",
    better="truth",
    definition="|z_last - z_first| / length of the path: 1 = a straight line.",
)


def latent_metrics(ours: MeasuredVideos, truth: MeasuredVideos) -> list[Scored]:
    """None without an encoder."""
    if not ours.has("latents"):
        return []
    key = ours.extractor("latents")
    kept = spread(len(ours.clips), CLIPS)
    x, y = (one.by_frame("latents", "latents", kept) for one in (ours, truth))  # [n, S, F, D], [n, 1, F, D]
    note = f"over {len(kept)} of {len(ours.clips)} clips" if len(kept) < len(ours.clips) else ""

    def whole(values: Tensor) -> Tensor:
        """`[n, ...]` -> `[N, ...]`, NaN for clips left out."""
        filled = torch.full((len(ours.clips), *values.shape[1:]), math.nan, dtype=torch.float64)
        filled[kept] = values.double()
        return filled

    found = []
    if len(kept) > 1:
        hits = whole(torch.stack([_hits(z, y[:, 0]).double() for z in x.unbind(1)]).mean(dim=0))  # [N, F]
        found.append(score_clips(RETRIEVAL, hits[:, 1:].mean(dim=1), curves=hits, extractor=key, warning=note))
        clusters = [cluster_metrics(x[:, s, 1:], x[:, s, 0]) for s in range(x.shape[1])]
        true = cluster_metrics(y[:, 0, 1:], y[:, 0, 0])
        for about, value in (
            (PURITY, attrgetter("neighbour_purity")),
            (SILHOUETTE, attrgetter("silhouette")),
            (ALIGNMENT, attrgetter("alignment")),
            (RANK, attrgetter("reciprocal_rank")),
        ):
            mean = torch.stack([value(one) for one in clusters]).mean(dim=0)
            found.append(score_generated(about, whole(mean), whole(value(true)), extractor=key, warning=note))
        found.insert(4, _uniformity(clusters, true, len(kept), key, note))
    return [*found, *_smoothness(ours, truth, key)]


def maps(ours: MeasuredVideos, truth: MeasuredVideos, umap: bool) -> list[LatentMap]:
    """Trajectories of the first seed in a plane; none without an encoder, or for one clip."""
    if not ours.has("latents") or len(ours.clips) < 2:
        return []
    kept = spread(len(ours.clips), MAPPED_CLIPS)
    x, y = (one.by_frame("latents", "latents", kept)[:, 0] for one in (ours, truth))
    return latent_maps(x, y, seed=0, umap=umap)


def _hits(predicted: Tensor, true: Tensor) -> Tensor:
    """`[n, F, D]` twice -> `[n, F]`."""
    frames = range(predicted.shape[1])
    return torch.stack([retrieval_hits(predicted[:, f], true[:, f]) for f in frames], dim=1)


def _uniformity(clusters: list[ClusterMetrics], true: ClusterMetrics, count: int, key: str, note: str) -> Scored:
    x = torch.stack([torch.cat([torch.tensor([c.source_uniformity]).double(), c.uniformity]) for c in clusters])
    y = torch.cat([torch.tensor([true.source_uniformity]).double(), true.uniformity])
    curve = x.mean(dim=0)  # [F]
    return score_set(
        UNIFORMITY,
        float(curve[1:].mean()),
        torch.zeros(0),
        samples=count,
        sample="clip",
        truth=float(y[1:].mean()),
        curve=curve,
        truth_curve=y,
        extractor=key,
        warning=note,
    )


def _smoothness(ours: MeasuredVideos, truth: MeasuredVideos, key: str) -> list[Scored]:
    def both(name: str) -> Iterator[Tensor]:
        for one in (ours, truth):
            yield one.each("latents", lambda kept: getattr(trajectory_smoothness(kept["latents"]), name))

    x, y = both("speed")
    found = [score_generated(SPEED, x, y, extractor=key)]
    if x.shape[1] > 1:
        x, y = map(from_second, both("curvature"))
        found.append(score_generated(CURVATURE, x, y, extractor=key))
    x, y = both("straightness")
    return [*found, score_clips(STRAIGHTNESS, x, truth=y, extractor=key)]
