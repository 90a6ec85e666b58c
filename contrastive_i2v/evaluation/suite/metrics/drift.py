"""How a rollout drifts: its first frames against its last ones, likeness by time lag, and how fine its detail stays."""

from __future__ import annotations

import math
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from contrastive_i2v.evaluation.alignment import cosine
from contrastive_i2v.evaluation.spectra import CUT
from contrastive_i2v.evaluation.suite.jackknife import leave_out, leave_out_each
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos
from contrastive_i2v.evaluation.suite.metrics.fidelity import MOST_DECIBELS
from contrastive_i2v.evaluation.suite.scored import About, Scored, score_clips, score_set
from contrastive_i2v.evaluation.temporal import cosine_by_lag, drift

define = partial(About, group="Over time")
SHARE = "the first 15 % of frames 1 to F - 1, one at least, minus the last 15 %"
DRIFT_FEATURES = define(
    name="drift_features",
    title="Drift, features",
    better="lower",
    definition="Mean cosine between image features of a generated frame and of the true one at the same index, of "
    f"{SHARE}; 0 = the end is as near to the truth as the beginning.",
)
DRIFT_PSNR = define(
    name="drift_psnr",
    title="Drift, PSNR",
    better="lower",
    definition=f"Mean PSNR against the true frame, {MOST_DECIBELS:g} dB at most, of {SHARE}.",
    unit="dB",
)
LAGS = define(
    name="feature_cosine_by_lag",
    title="Feature cosine by time lag",
    better="truth",
    definition="Mean over t of cos(f_t, f_{t+lag}) of image features, a mean over lags 1 to F - 1; the curve is over "
    "the lag, not over the frame.",
)
SPATIAL = define(
    name="spatial_high_frequencies",
    title="Spatial high frequencies",
    better="truth",
    definition=f"Share of a frame's spectral energy, its mean left out, above a radius of {CUT:g} cycles a pixel "
    "(half of Nyquist), generated over true, each summed over clips and frames 1 to F - 1: below 1 = blurred, above "
    "1 = noise. A point of the curve is of one frame index.",
)
TEMPORAL = define(
    name="temporal_high_frequencies",
    title="Temporal high frequencies",
    better="truth",
    definition=f"Share of the spectral energy over time, pixel by pixel without its mean, above {CUT:g} cycles a frame "
    "(half of Nyquist), generated over true, each summed over clips: above 1 = flicker.",
)


def drift_metrics(ours: MeasuredVideos, truth: MeasuredVideos) -> list[Scored]:
    """Those on features where an image network is there."""
    psnr = ours.each("fidelity", lambda kept: kept["psnr"].clamp(max=MOST_DECIBELS))  # [N, F]
    found = [score_clips(DRIFT_PSNR, drift(psnr[:, 1:]))]
    role = next((role for role in ("image", "clip") if ours.has(role)), None)
    if role is not None:
        key = ours.extractor(role)
        x, y = (one.each(role, lambda kept: cosine_by_lag(kept["features"])) for one in (ours, truth))  # [N, F]
        lags = [of[:, 1:].mean(dim=1) for of in (x, y)]
        found = [
            score_clips(DRIFT_FEATURES, drift(_to_truth(ours, truth, role)[:, 1:]), extractor=key),
            *found,
            score_clips(LAGS, lags[0], curves=x, truth=lags[1], truth_curves=y, extractor=key),
        ]
    x, y = (one.each("spectra", itemgetter("spatial")) for one in (ours, truth))  # [N, F]
    found.append(_over_truth(SPATIAL, x, y))
    x, y = (one.each("spectra", itemgetter("temporal"))[:, None] for one in (ours, truth))  # [N, 1]
    return [*found, _over_truth(TEMPORAL, x, y)]


def _to_truth(ours: MeasuredVideos, truth: MeasuredVideos, role: str) -> Tensor:
    """Cosine of each frame's features to the true frame's, a mean over seeds: `[N, F]`."""
    found = []
    for clip in ours.clips:
        generated, true = (one.read(role, clip)["features"] for one in (ours, truth))  # [S, F, d], [1, F, d]
        found.append(cosine(generated, true.expand_as(generated)).double().mean(dim=0))
    return torch.stack(found)


def _over_truth(about: About, x: Tensor, y: Tensor) -> Scored:
    """Sums over clips of shares, generated over true: `[N, F]` twice; F = 1 is of whole clips."""
    generated = slice(min(1, x.shape[1] - 1), None)

    def curve(kept: Tensor) -> Tensor:
        return x[kept].sum(dim=0) / y[kept].sum(dim=0)  # [F]

    def value(kept: Tensor) -> float:
        total = float(y[kept][:, generated].sum())
        return float(x[kept][:, generated].sum()) / total if total > 0 else math.nan

    every = torch.arange(len(x))
    whole = value(every)
    has_curve = x.shape[1] > 1 and bool((y.sum(dim=0) > 0).all())
    return score_set(
        about,
        whole,
        leave_out(len(x), value),
        samples=len(x),
        sample="clip",
        truth=1.0,
        curve=curve(every) if has_curve else None,
        curve_left_out=leave_out_each(len(x), curve) if has_curve else None,
        truth_curve=torch.ones(x.shape[1], dtype=torch.float64) if has_curve else None,
        least=0.0,
        warning="" if math.isfinite(whole) else "the true videos have none, so there is nothing to compare with",
    )
