"""How videos go on from frame to frame: flicker, consistency, coherence, and how much moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from contrastive_i2v.evaluation.suite.jackknife import leave_out
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos
from contrastive_i2v.evaluation.suite.scored import About, Scored, from_second, score_clips, score_generated, score_set
from contrastive_i2v.evaluation.temporal import consistency, feature_coherence, image_to_video_consistency

define = partial(About, group="Over time")
STILL = "a still video scores best, so read it beside the dynamic degree"
CONSISTENCY = "1/2 (max(0, cos(f_{t-1}, f_t)) + max(0, cos(f_0, f_t))), a mean over frames 1 to F - 1 and clips"
I2V = "0.4 max cos(f_0, f_t) + 0.3 mean cos(f_{t-1}, f_t) + 0.3 min cos(f_{t-1}, f_t), f_0 the given frame"
FLICKERING = define(
    name="temporal_flickering",
    title="Temporal flickering",
    better="truth",
    definition="(255 - mean |f_t - f_{t+1}|) / 255 over pixels of consecutive frames (VBench): 1 = still, and "
    "motion lowers it as flicker does, so the truth's value is the mark.",
)
SUBJECT = define(
    name="subject_consistency",
    title="Subject consistency",
    better="higher",
    definition=f"{CONSISTENCY} (VBench, there on DINO ViT-B/16 features); {STILL}.",
)
BACKGROUND = define(
    name="background_consistency",
    title="Background consistency",
    better="higher",
    definition=f"{CONSISTENCY} (VBench, there on CLIP ViT-B/32 features); {STILL}.",
)
I2V_SUBJECT = define(
    name="i2v_subject",
    title="I2V subject",
    better="higher",
    definition=f"{I2V} (VBench-I2V, there on DINO features); {STILL}.",
)
I2V_BACKGROUND = define(
    name="i2v_background",
    title="I2V background",
    better="higher",
    definition=f"{I2V} (VBench-I2V, there on DreamSim features); {STILL}.",
)
FEATURE_COHERENCE = define(
    name="feature_coherence",
    title="Temporal coherency, features",
    better="higher",
    definition=f"Cosine of the features of consecutive frames (Emu Video, there CLIP's); {STILL}.",
)
PIXEL_COHERENCE = define(
    name="pixel_coherence",
    title="Temporal coherency, pixels",
    better="truth",
    definition="Mean squared difference of consecutive frames, pixels in [-1, 1] (Emu Video); 0 = still.",
)
DYNAMIC = define(
    name="dynamic_degree",
    title="Dynamic degree",
    better="truth",
    definition="Share of videos that move (VBench): of T frames, round(4 T / 16) pairs or more whose fastest "
    "5 % of the optical flow exceed 6 min(H, W) / 256 pixels on average.",
)
FLOW = define(
    name="flow_magnitude",
    title="Flow, fastest 5 %",
    better="truth",
    definition="Mean of the fastest 5 % of the optical flow between consecutive frames, the quantity under "
    "the dynamic degree.",
    unit="pixels a frame",
)
MOTION_RATIO = define(
    name="motion_ratio",
    title="Motion ratio",
    better="truth",
    definition="sum over clips of mean |x_{t+1} - x_t|, generated over true: 1 = as much change, near 0 = the "
    "videos froze.",
)


def over_time_metrics(ours: MeasuredVideos, truth: MeasuredVideos) -> list[Scored]:
    """Those whose network is there; flickering, pixel coherence and the motion ratio always."""
    found = [_pairs(ours, truth, "flicker", FLICKERING)]
    subject = "subject" if ours.has("subject") else "image"
    background = "clip" if ours.has("clip") else "image"
    if ours.has(subject):
        found.append(_features(ours, truth, subject, consistency, SUBJECT))
    if ours.has(background):
        found.append(_features(ours, truth, background, consistency, BACKGROUND))
    if ours.has(subject):
        found.append(_whole(ours, truth, subject, I2V_SUBJECT))
    if ours.has(background):
        found.append(_whole(ours, truth, background, I2V_BACKGROUND))
        found.append(_features(ours, truth, background, feature_coherence, FEATURE_COHERENCE))
    found.append(_pairs(ours, truth, "pixel_coherence", PIXEL_COHERENCE))
    if ours.has("flow"):
        dynamic = [one.each("flow", itemgetter("dynamic")) for one in (ours, truth)]
        found.append(score_clips(DYNAMIC, dynamic[0], truth=dynamic[1], extractor=ours.extractor("flow")))
        found.append(_flow(ours, truth))
    return [*found, _motion_ratio(ours, truth)]


def _pairs(ours: MeasuredVideos, truth: MeasuredVideos, name: str, about: About) -> Scored:
    """From a value a pair of consecutive frames."""
    return score_generated(about, *(one.each("motion", itemgetter(name)) for one in (ours, truth)))


def _features(
    ours: MeasuredVideos, truth: MeasuredVideos, role: str, measure: Callable[[Tensor], Tensor], about: About
) -> Scored:
    """From a value a frame after the first."""
    x, y = (one.each(role, lambda kept: measure(kept["features"])) for one in (ours, truth))
    return score_generated(about, x, y, extractor=ours.extractor(role), warning=_stand_in(role, about))


def _whole(ours: MeasuredVideos, truth: MeasuredVideos, role: str, about: About) -> Scored:
    x, y = (one.each(role, lambda kept: image_to_video_consistency(kept["features"])) for one in (ours, truth))
    return score_clips(about, x, truth=y, extractor=ours.extractor(role), warning=_stand_in(role, about))


def _stand_in(role: str, about: About) -> str:
    if role == "image" and about in (BACKGROUND, I2V_BACKGROUND):
        return "on the same features as the subject's, for want of CLIP"
    return ""


def _flow(ours: MeasuredVideos, truth: MeasuredVideos) -> Scored:
    """By pair where every pair of frames was looked at, else the mean alone."""
    x, y = (one.each("flow", itemgetter("magnitudes")) for one in (ours, truth))  # [N, pairs]
    every = x.shape[1] == ours.read("motion", ours.clips[0])["flicker"].shape[1]
    return score_clips(
        FLOW,
        x.mean(dim=1),
        curves=from_second(x) if every else None,
        truth=y.mean(dim=1),
        truth_curves=from_second(y) if every else None,
        extractor=ours.extractor("flow"),
    )


def _motion_ratio(ours: MeasuredVideos, truth: MeasuredVideos) -> Scored:
    x, y = (one.each("motion", itemgetter("motion")) for one in (ours, truth))  # [N]

    def ratio(kept: Tensor) -> float:
        total = float(y[kept].sum())
        return float(x[kept].sum()) / total if total > 0 else math.nan

    value = ratio(torch.arange(len(x)))
    warning = "" if math.isfinite(value) else "the true videos stand still, so there is nothing to compare with"
    left_out = leave_out(len(x), ratio)
    return score_set(
        MOTION_RATIO, value, left_out, samples=len(x), sample="clip", truth=1.0, least=0.0, warning=warning
    )
