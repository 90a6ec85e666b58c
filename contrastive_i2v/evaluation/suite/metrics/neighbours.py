"""Whether generated videos are among the true ones and reach all of them: precision, recall, density, coverage."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from contrastive_i2v.evaluation.neighbours import Distances, K
from contrastive_i2v.evaluation.suite.jackknife import leave_out_each
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos, spread
from contrastive_i2v.evaluation.suite.scored import About, Scored, score_set

define = partial(About, group="Distribution", better="higher")
CLIPS = 512
"""Clips that are compared with each other, at most: the work grows with their square."""
FRAME_CLIPS = 128
"""The same at every frame index."""
BALL = f"a ball reaches to the {K}th nearest sample of its own set"
NAMES = {
    "precision": ("Precision", f"share of generated samples within the ball of some true one, where {BALL} "
                  "(Kynkaanniemi et al., 2019)"),
    "recall": ("Recall", f"share of true samples within the ball of some generated one, where {BALL} (Kynkaanniemi et "
               "al., 2019); lost modes lower it"),
    "density": ("Density", f"true balls that a generated sample lies in, over {K} (Naeem et al., 2020); above 1 where "
                "the generated ones crowd"),
    "coverage": ("Coverage", "share of true samples whose ball holds a generated one (Naeem et al., 2020); lost modes "
                 "lower it"),
}  # fmt: skip
VIDEO = {
    name: define(name=name, title=title, definition=f"On video features of whole clips, {text}.")
    for name, (title, text) in NAMES.items()
}
IMAGE = {
    name: define(
        name=f"{name}_frames",
        title=f"{title}, frames",
        definition=f"On image features, of each frame index for itself and a mean over frames 1 to F - 1: {text}.",
    )
    for name, (title, text) in NAMES.items()
}


def neighbour_metrics(ours: MeasuredVideos, truth: MeasuredVideos) -> list[Scored]:
    """Those whose network is there; none for a single clip."""
    found = []
    if len(ours.clips) > 1 and ours.has("video"):
        kept = spread(len(ours.clips), CLIPS)
        x, y = (one.rows("video", "features", None, kept) for one in (ours, truth))  # [n, S, d], [n, 1, d]
        found += _score(VIDEO, x[:, :, None], y[:, :, None], len(ours.clips), ours.extractor("video"))
    if len(ours.clips) > 1 and ours.has("image"):
        kept = spread(len(ours.clips), FRAME_CLIPS)
        x, y = (one.by_frame("image", "features", kept) for one in (ours, truth))  # [n, S, F, d], [n, 1, F, d]
        found += _score(IMAGE, x, y, len(ours.clips), ours.extractor("image"))
    return found


def _score(abouts: dict[str, About], x: Tensor, y: Tensor, clips: int, key: str) -> list[Scored]:
    """Of features `[n, S, F, d]` and `[n, 1, F, d]`; F = 1 is no curve."""
    n, seeds, frames = x.shape[:3]
    distances = [Distances.of(x[:, :, f].flatten(0, 1), y[:, 0, f]) for f in range(frames)]
    fewest = n - math.ceil(n / 10) if n > 2 else n  # of what stays when a part is left out
    k = min(K, fewest - 1)
    notes = [f"over {n} of {clips} clips"] if n < clips else []
    notes += [f"{n} clips: balls reach to the neighbour {k}, not {K}"] if k < K else []

    def covers(kept: Tensor) -> Tensor:
        """`[F, 4]`."""
        rows = (kept[:, None] * seeds + torch.arange(seeds)).flatten()
        of = [one.keep(rows, kept).cover(k) for one in distances]
        return torch.tensor([[getattr(cover, name) for name in abouts] for cover in of], dtype=torch.float64)

    whole = covers(torch.arange(n))
    parts = leave_out_each(n, covers)  # [G, F, 4]
    first = min(1, frames - 1)  # the given frame says nothing
    found = []
    for index, about in enumerate(abouts.values()):
        curve, left_out = whole[:, index], parts[..., index]
        found.append(
            score_set(
                about,
                float(curve[first:].mean()),
                left_out[:, first:].mean(dim=1),
                samples=n * seeds,
                sample="clip",
                curve=curve if frames > 1 else None,
                curve_left_out=left_out if frames > 1 else None,
                least=0.0,
                most=math.inf if about.title.startswith("Density") else 1.0,
                extractor=key,
                warning="; ".join(notes),
            )
        )
    return found
