"""Whether the caption still holds on the generated clips of shapes: shape, colour and direction, read frame by frame.

Where captions leave the future open, whether samples with different seeds choose different ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from contrastive_i2v.data.shapes import COLOURS, DIRECTIONS, SHAPES
from contrastive_i2v.evaluation.captions import (
    ShapesCaption,
    choice_entropy,
    expected_distinct,
    expected_entropy,
    parse_caption,
)
from contrastive_i2v.evaluation.extractors.shapes_reader import MOTIONS
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos
from contrastive_i2v.evaluation.suite.scored import About, Scored, score_clips

define = partial(About, group="Caption", better="higher")
READ = "read by the packaged classifier of generated clips, which errs too: the truth's own value is beside it"
SHAPE = define(
    name="caption_shape",
    title="Shape as captioned",
    definition=f"Share of frames 1 to F - 1 whose shape is the caption's, {READ}; by chance 1/6.",
)
COLOUR = define(
    name="caption_colour",
    title="Colour as captioned",
    definition=f"Share of frames 1 to F - 1 whose shape has the caption's colour, {READ}; by chance 1/8.",
)
DIRECTION = define(
    name="caption_direction",
    title="Direction as captioned",
    definition="Share of pairs of frames, 1/5 s apart, between which the shape moves as the caption says, "
    f"{READ}; a still video has 0. A frame's value on the curve is of the pair that it ends.",
)
HOLDS = define(
    name="caption_holds",
    title="Caption holds",
    definition=f"Share of frames at which shape, colour and, where it says one, direction are the caption's, {READ}.",
)
PLAIN_LAST = define(
    name="caption_shape_plain_last",
    title="Last frame's shape, plain walls",
    definition="Share of clips over a plain wall without a pillar whose shape is still the caption's at frame F - 1, "
    f"{READ}; the curve is over all frames; by chance 1/6.",
)
COVERAGE = define(
    name="mode_coverage",
    title="Mode coverage",
    definition="Entropy of the directions that the samples of one clip take (the likeliest of left, right, up, down "
    "and still on average over its pairs of frames; still ones take none), over that of as many independent uniform "
    "choices on average; a mean over the clips whose caption says neither direction nor speed: 0 = one future, "
    "1 = as varied as chance.",
)
DISTINCT = define(
    name="distinct_directions",
    title="Distinct directions",
    definition="Different directions among the samples of one clip whose caption says neither direction nor speed, "
    "read as for the mode coverage; beside it, as the truth's value, 4 (1 - (3/4)^S) of S uniform choices.",
)


def caption_metrics(ours: MeasuredVideos, truth: MeasuredVideos) -> list[Scored]:
    """None without captions of the generated clips; a clip with another caption has no value."""
    said = [parse_caption(clip.caption) for clip in ours.clips]
    if not ours.has("shapes") or not any(said):
        return []
    key = ours.extractor("shapes")
    x, y = (_hits(one, said) for one in (ours, truth))  # [N, F] by name

    def score(about: About, name: str, kept: Tensor | None = None) -> Scored:
        curves, true = (one[name] if kept is None else one[name].where(kept[:, None], math.nan) for one in (x, y))
        last = kept is not None
        a, b = ((of[:, -1] if last else of[:, 1:].nanmean(dim=1)) for of in (curves, true))
        return score_clips(about, a, curves=curves, truth=b, truth_curves=true, extractor=key)

    found = [score(SHAPE, "shape"), score(COLOUR, "colour")]
    if any(one is not None and one.direction is not None for one in said):
        found.append(score(DIRECTION, "motion"))
    found.append(score(HOLDS, "holds"))
    plain = torch.tensor([one is not None and one.is_plain for one in said])
    if plain.any():
        found.append(score(PLAIN_LAST, "shape", plain))
    return [*found, *_modes(ours, said, key)]


def _hits(videos: MeasuredVideos, said: Sequence[ShapesCaption | None]) -> dict[str, Tensor]:
    """Whether each frame is as captioned, a mean over seeds: `[N, F]` float64, NaN where that can't be said."""
    found: dict[str, list[Tensor]] = {"shape": [], "colour": [], "motion": [], "holds": []}
    for clip, scene in zip(videos.clips, said, strict=True):
        read = {name: value.argmax(dim=-1).double() for name, value in videos.read("shapes", clip).items()}
        frames = read["shape"].shape[1]
        nothing = torch.full((len(read["shape"]), frames), math.nan, dtype=torch.float64)
        hits = dict.fromkeys(found, nothing)
        if scene is not None:
            hits["shape"] = (read["shape"] == SHAPES.index(scene.shape)).double()
            hits["colour"] = (read["colour"] == list(COLOURS).index(scene.colour)).double()
            hits["holds"] = hits["shape"] * hits["colour"]
            if scene.direction is not None:
                moved = (read["motion"] == MOTIONS.index(scene.direction)).double()
                hits["motion"] = torch.cat([nothing[:, : frames - moved.shape[1]], moved], dim=1)
                hits["holds"] = hits["holds"] * hits["motion"]
        for name, value in hits.items():
            found[name].append(value.mean(dim=0))
    return {name: torch.stack(value) for name, value in found.items()}


def _modes(ours: MeasuredVideos, said: Sequence[ShapesCaption | None], key: str) -> list[Scored]:
    """None where no caption leaves the future open, or for one seed."""
    samples, choices = len(ours.jobs), len(DIRECTIONS)
    is_open = [one is not None and one.is_open for one in said]
    if samples < 2 or not any(is_open):
        return []
    entropy, distinct = torch.full((2, len(said)), math.nan, dtype=torch.float64)
    for index, clip in enumerate(ours.clips):
        motion = ours.read("shapes", clip)["motion"]  # [S, pairs, 5]
        if is_open[index] and motion.shape[1]:
            chosen = motion.mean(dim=1).argmax(dim=1)  # [S]
            counts = torch.bincount(chosen, minlength=len(MOTIONS))[:choices]  # still is the last
            entropy[index], distinct[index] = choice_entropy(counts), (counts > 0).sum()
    return [
        score_clips(COVERAGE, entropy / expected_entropy(samples, choices), extractor=key),
        score_clips(
            DISTINCT,
            distinct,
            truth=torch.full_like(distinct, expected_distinct(samples, choices)),
            extractor=key,
        ),
    ]
