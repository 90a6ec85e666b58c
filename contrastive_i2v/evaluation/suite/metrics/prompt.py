"""How well videos fit their prompt, by CLIP: the given frame, the generated ones, the true ones; CLIPSIM."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from contrastive_i2v.evaluation.alignment import clipsim, cosine
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos
from contrastive_i2v.evaluation.suite.scored import About, Scored, score_clips

define = partial(About, group="Prompt")
RAW = "raw cosine; 100 times it is torchmetrics' CLIPScore, 2.5 max(it, 0) Hessel et al.'s"
SOURCE = define(
    name="clip_score_source",
    title="CLIP score, source",
    better="none",
    definition=f"cos(image, prompt) of the given frame as it truly is ({RAW}).",
)
GENERATED = define(
    name="clip_score_generated",
    title="CLIP score, generated",
    better="higher",
    definition=f"Mean of cos(image, prompt) over the generated frames, 1 to F - 1 ({RAW}).",
)
TARGET = define(
    name="clip_score_target",
    title="CLIP score, target",
    better="none",
    definition=f"Mean of cos(image, prompt) over the true frames 1 to F - 1: what the generated ones aim at ({RAW}).",
)
CLIPSIM = define(
    name="clipsim",
    title="CLIPSIM",
    better="higher",
    definition="Mean of cos(image, prompt) over all F frames, the given one included (Wu et al., 2021).",
)


def prompt_metrics(ours: MeasuredVideos, truth: MeasuredVideos) -> list[Scored]:
    """None without CLIP."""
    if not ours.has("clip"):
        return []
    key = ours.extractor("clip")
    x, y = (one.each("clip", _cosines) for one in (ours, truth))  # [N, F]
    return [
        score_clips(SOURCE, y[:, 0], extractor=key),
        score_clips(
            GENERATED,
            x[:, 1:].mean(dim=1),
            curves=x,
            truth=y[:, 1:].mean(dim=1),
            truth_curves=y,
            extractor=key,
        ),
        score_clips(TARGET, y[:, 1:].mean(dim=1), extractor=key),
        score_clips(CLIPSIM, ours.each("clip", _clipsim), truth=truth.each("clip", _clipsim), extractor=key),
    ]


def _cosines(found: Mapping[str, Tensor]) -> Tensor:
    return cosine(found["features"], found["text"][:, None])


def _clipsim(found: Mapping[str, Tensor]) -> Tensor:
    return clipsim(found["features"], found["text"])
