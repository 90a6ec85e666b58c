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
from contrastive_i2v.evaluation.temporal import (
    consistency,
    feature_coherence,
    image_to_video_consistency,
    later_frames_consistency,
)

define = partial(About, group="Over time")
STILL = "a still video scores best, so read it beside the dynamic degree"
CONSISTENCY = "1/2 (max(0, cos(f_{t-1}, f_t)) + max(0, cos(f_0, f_t))), a mean over frames 1 to F - 1 and clips"
I2V = "0.4 max cos(image, f_t) + 0.3 mean cos(f_{t-1}, f_t) + 0.3 min cos(f_{t-1}, f_t), negative cosines as 0"
ALL = "the maximum over all frames, the given one included, which makes its term 1 where a method keeps that frame"
LATER = "the maximum over frames 1 to F - 1, which VBench's has over all frames: not its number"
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
    definition=f"{CONSISTENCY} (VBench, there on DINO ViT-B/16, shorter side 224, bilinear without antialias, no "
    f"crop); {STILL}.",
)
BACKGROUND = define(
    name="background_consistency",
    title="Background consistency",
    better="higher",
    definition=f"{CONSISTENCY} (VBench, there on CLIP ViT-B/32, shorter side 224, bicubic without antialias, then the "
    f"central square); {STILL}.",
)
I2V_SUBJECT = define(
    name="i2v_subject",
    title="I2V subject",
    better="higher",
    definition=f"{I2V}; {ALL} (VBench-I2V, there on DINO ViT-B/16, shorter side 256, bicubic, then the central "
    f"224); {STILL}.",
)
LATER_SUBJECT = define(
    name="i2v_subject_later",
    title="I2V subject, from frame 1",
    better="higher",
    definition=f"{I2V}; {LATER}; {STILL}.",
)
I2V_BACKGROUND = define(
    name="i2v_background",
    title="I2V background",
    better="higher",
    definition=f"{I2V}; {ALL} (VBench-I2V, there on DreamSim, stretched to 224 x 224, bicubic); {STILL}.",
)
LATER_BACKGROUND = define(
    name="i2v_background_later",
    title="I2V background, from frame 1",
    better="higher",
    definition=f"{I2V}; {LATER}; {STILL}.",
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
    "5 % of the optical flow exceed 6 min(H, W) / 256 pixels on average. VBench's flow is RAFT's, weights C_T_V1, 20 "
    "iterations.",
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
    # VBench resizes in a way of its own for each; networks that can't have one measure for all of them
    subject, background = _first(ours, "subject", "image"), _first(ours, "background", "clip", "image")
    plain = _first(ours, "clip", "image")
    if subject:
        found.append(_features(ours, truth, subject, consistency, SUBJECT))
    if background:
        found.append(_features(ours, truth, background, consistency, BACKGROUND))
    if role := _first(ours, "i2v_subject", "subject", "image"):
        found.append(_whole(ours, truth, role, image_to_video_consistency, I2V_SUBJECT))
        found.append(_whole(ours, truth, role, later_frames_consistency, LATER_SUBJECT))
    if role := _first(ours, "i2v_background", "clip", "image"):
        found.append(_whole(ours, truth, role, image_to_video_consistency, I2V_BACKGROUND))
        found.append(_whole(ours, truth, role, later_frames_consistency, LATER_BACKGROUND))
    if plain:
        found.append(_features(ours, truth, plain, feature_coherence, FEATURE_COHERENCE))
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
    return score_generated(about, x, y, extractor=ours.extractor(role), warning=_stand_in(ours, role, about))


def _whole(
    ours: MeasuredVideos,
    truth: MeasuredVideos,
    role: str,
    measure: Callable[[Tensor, Tensor], Tensor],
    about: About,
) -> Scored:
    """From all frames of a video and the given image, which is the truth's first frame, not the method's own."""
    found = ([], [])  # type: tuple[list[Tensor], list[Tensor]]
    for clip in ours.clips:
        true = truth.read(role, clip)["features"]  # [1, F, d]
        generated = ours.read(role, clip)["features"]  # [S, F, d]
        for values, features in zip(found, (generated, true), strict=True):
            values.append(measure(features, true[:, 0].expand(len(features), -1)).mean())
    x, y = map(torch.stack, found)
    return score_clips(about, x, truth=y, extractor=ours.extractor(role), warning=_stand_in(ours, role, about))


def _first(ours: MeasuredVideos, *roles: str) -> str:
    """The first of them that was measured, or ""."""
    return next((role for role in roles if ours.has(role)), "")


def _stand_in(ours: MeasuredVideos, role: str, about: About) -> str:
    """What keeps the number from being VBench's beside a stand-in network, which the report marks itself."""
    if ours.extractor(role).startswith("dreamsim"):
        return ""
    background = about in (BACKGROUND, I2V_BACKGROUND, LATER_BACKGROUND)
    if background and not ours.has("clip"):
        return "on the same network as the subject's, for want of CLIP"
    if about is I2V_BACKGROUND:
        return "not on DreamSim, so VBench's numbers don't compare"
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
