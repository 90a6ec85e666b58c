"""How far generated videos are from the true ones as distributions: FID, KID, FVD and kin, and the Inception Score."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from contrastive_i2v.evaluation.distribution import (
    extrapolated_frechet_distance,
    frechet_distance,
    inception_score,
    kernel_distance,
)
from contrastive_i2v.evaluation.suite.jackknife import leave_out
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos, spread
from contrastive_i2v.evaluation.suite.scored import About, Scored, score_set

define = partial(About, group="Distribution")
GENERATED = slice(1, None)
KERNEL_ROWS = 2048
"""Rows of each set that a kernel distance looks at; it has no bias at any number."""
CURVE_CLIPS = 256
"""Clips that a curve over frame indices looks at."""
FRECHET = "|mean - mean'|^2 + tr(S + S' - 2 (S S')^1/2)"
FID = define(
    name="fid",
    title="FID",
    better="lower",
    definition=f"Frechet distance {FRECHET} between image features of generated frames (1 to F - 1, the given "
    "frame left out) and of the true frames at the same indices, covariances with N - 1 (Heusel et al., 2017).",
)
FID_INFINITY = define(
    name="fid_extrapolated",
    title="FID, N to infinity",
    better="lower",
    definition="FID of subsets of n frames extrapolated to 1/n = 0 by least squares (Chong and Forsyth, "
    "2020), which takes away much of the bias of a small N; below N of several d what is left is still too "
    "large.",
)
KID = define(
    name="kid",
    title="KID",
    better="lower",
    definition="Unbiased squared maximum mean discrepancy with kernel (u.v / d + 1)^3 between the features of "
    f"FID (Binkowski et al., 2018), over subsets of 1,000 of at most {KERNEL_ROWS:,} frames; it may fall below "
    "0.",
)
IS = define(
    name="inception_score",
    title="Inception Score",
    better="higher",
    definition="exp(mean KL(p(y|x) | p(y))) of the classifier's classes of generated frames, a mean over 10 "
    "random parts (Salimans et al., 2016); the curve takes one part a frame index.",
)
FVD = define(
    name="fvd",
    title="FVD",
    better="lower",
    definition=f"Frechet distance {FRECHET} between video features of whole clips, the given frame included, "
    "covariances divided by N - 1 (Unterthiner et al., 2018). cd-fvd and StyleGAN-V divide by N, which gives up to 1 % "
    "less.",
)
FVD_INFINITY = define(
    name="fvd_extrapolated",
    title="FVD, N to infinity",
    better="lower",
    definition="FVD of subsets of n clips extrapolated to 1/n = 0 by least squares (Chong and Forsyth, 2020).",
)
KVD = define(
    name="kvd",
    title="KVD",
    better="lower",
    definition="KID's kernel distance between the video features of FVD: no bias at a small N; it may fall below 0.",
)


@dataclass(frozen=True)
class Features:
    """One role's features of generated and true clips: those in memory, and how many there are."""

    role: str
    frames: slice | None
    """Frame indices; None where a feature is of a whole clip."""
    ours: Tensor
    """`[n, S x R, d]`: n clips, S seeds, R frame indices."""
    truth: Tensor
    """`[n, R, d]`."""
    clips: int
    """N; n < N where they are too many to hold."""
    extractor: str

    @property
    def sample(self) -> Literal["clip", "frame"]:
        return "clip" if self.frames is None else "frame"

    @property
    def count(self) -> int:
        return self.clips * self.ours.shape[1]

    def few(self, instead: About) -> str:
        """What to say where N doesn't exceed d."""
        dimension = self.ours.shape[-1]
        if self.count > dimension:
            return ""
        return (
            f"N = {self.count} {self.sample}s for d = {dimension} features: biased upwards, so compare only at "
            f"equal N, and see {instead.title}"
        )


def distribution_metrics(ours: MeasuredVideos, truth: MeasuredVideos) -> list[Scored]:
    """Those whose network is there."""
    found = []
    if ours.has("image"):
        features = _read(ours, truth, "image", GENERATED)
        curve, left_out = _frechet_by_frame(ours, truth)
        shape = f"a point of the curve has N = {min(len(ours.clips), CURVE_CLIPS)} clips, so only its shape counts"
        found.append(_frechet(ours, truth, features, FID, KID, shape, curve=curve, curve_left_out=left_out))
        found += [_extrapolated(features, FID_INFINITY, KID), _kernel(features, KID)]
        if "probabilities" in ours.read("image", ours.clips[0]):
            found.append(_inception_score(ours, truth))
    if ours.has("video"):
        features = _read(ours, truth, "video", None)
        found.append(_frechet(ours, truth, features, FVD, KVD))
        found += [_extrapolated(features, FVD_INFINITY, KVD), _kernel(features, KVD)]
    return found


def _read(ours: MeasuredVideos, truth: MeasuredVideos, role: str, frames: slice | None) -> Features:
    kept = spread(len(ours.clips), ours.held(role, "features", frames))
    x, y = (one.rows(role, "features", frames, kept) for one in (ours, truth))
    return Features(role, frames, x, y, len(ours.clips), ours.extractor(role))


def _frechet(
    ours: MeasuredVideos,
    truth: MeasuredVideos,
    features: Features,
    about: About,
    instead: About,
    warning: str = "",
    *,
    curve: Tensor | None = None,
    curve_left_out: Tensor | None = None,
) -> Scored:
    x, y = features.ours, features.truth

    def distance(kept: Tensor) -> float:
        return _defined(frechet_distance, x[kept], y[kept])

    if len(x) == features.clips:
        value, left_out = distance(torch.arange(len(x))), leave_out(len(x), distance)
    else:
        value = frechet_distance(*(one.moments(features.role, "features", features.frames) for one in (ours, truth)))
        left_out = torch.zeros(0)
    return score_set(
        about,
        value,
        left_out,
        samples=features.count,
        sample=features.sample,
        curve=curve,
        curve_left_out=curve_left_out,
        least=0.0,
        extractor=features.extractor,
        warning="; ".join(filter(None, [features.few(instead), warning])),
    )


def _extrapolated(features: Features, about: About, instead: About) -> Scored:
    x, y = features.ours.flatten(0, 1), features.truth.flatten(0, 1)
    value = math.nan
    if min(len(x), len(y)) >= 10:
        value = extrapolated_frechet_distance(x, y, torch.Generator().manual_seed(0), sizes=8)
    return score_set(
        about,
        value,
        torch.zeros(0),
        samples=len(x),
        sample=features.sample,
        extractor=features.extractor,
        warning=features.few(instead),
    )


def _kernel(features: Features, about: About) -> Scored:
    x, y = (_thinned(one, KERNEL_ROWS) for one in (features.ours, features.truth))

    def distance(kept: Tensor) -> float:
        draw = torch.Generator().manual_seed(0)
        return _defined(lambda a, b: kernel_distance(a, b, generator=draw)[0], x[kept], y[kept])

    count = x.shape[0] * x.shape[1]
    return score_set(
        about,
        distance(torch.arange(len(x))),
        leave_out(len(x), distance),
        samples=count,
        sample=features.sample,
        extractor=features.extractor,
        warning=f"N = {count} {features.sample}s: too few for more than a hint" if count < 100 else "",
    )


def _frechet_by_frame(ours: MeasuredVideos, truth: MeasuredVideos) -> tuple[Tensor, Tensor]:
    """`[F]`, and `[G, F]` with parts of the clips left out."""
    kept = spread(len(ours.clips), min(CURVE_CLIPS, ours.held("image", "features", slice(None))))
    x, y = (one.by_frame("image", "features", kept) for one in (ours, truth))  # [n, S, F, d]
    curve, left_out = [], []
    for f in range(x.shape[2]):

        def distance(of: Tensor, f: int = f) -> float:
            return _defined(frechet_distance, x[of, :, f], y[of, :, f])

        curve.append(distance(torch.arange(len(x))))
        left_out.append(leave_out(len(x), distance))
    return torch.tensor(curve, dtype=torch.float64), torch.stack(left_out, dim=1)


def _inception_score(ours: MeasuredVideos, truth: MeasuredVideos) -> Scored:
    kept = spread(len(ours.clips), ours.held("image", "probabilities", slice(None)))
    x, y = (one.by_frame("image", "probabilities", kept) for one in (ours, truth))  # [n, S, F, K]

    def score(probabilities: Tensor, splits: int = 10) -> float:
        generator = torch.Generator().manual_seed(0)
        return inception_score(probabilities.flatten(0, -2), splits=splits, generator=generator)[0]

    def curve(p: Tensor) -> Tensor:
        return torch.tensor([score(p[:, :, f], splits=1) for f in range(p.shape[2])], dtype=torch.float64)

    count, classes = x[:, :, 1:, 0].numel(), x.shape[-1]
    return score_set(
        IS,
        score(x[:, :, 1:]),
        leave_out(len(x), lambda of: score(x[of][:, :, 1:])),
        samples=count,
        sample="frame",
        truth=score(y[:, :, 1:]),
        curve=curve(x),
        truth_curve=curve(y),
        least=1.0,
        extractor=ours.extractor("image"),
        warning=f"N = {count} frames for {classes} classes: it grows with N, so compare only at equal N"
        if count < 10 * classes
        else "",
    )


def _thinned(rows: Tensor, most: int) -> Tensor:
    """`[n, R, d]` with as many rows of each clip left out as it takes; then clips."""
    clips, per_clip, _ = rows.shape
    return rows[spread(clips, most)][:, spread(per_clip, max(1, most // clips))]


def _defined(distance: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> float:
    """Between features `[n, ..., d]`; NaN for sets of one, which have no spread."""
    x, y = x.flatten(0, -2), y.flatten(0, -2)
    return distance(x, y) if min(len(x), len(y)) >= 2 else math.nan
