"""A metric together with what differences between methods need: its value for each clip, or with clips left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from contrastive_i2v.evaluation.results import Better, Difference, Interval, Metric
from contrastive_i2v.evaluation.statistics import bootstrap, least_squares, paired_bootstrap, slope
from contrastive_i2v.evaluation.suite import jackknife

Verdict: TypeAlias = Literal["a", "b", "neither", ""]
FEW_CLIPS = 30
"""Below this many the intervals are rough, and the metric says so."""
FEWEST_FOR_A_VERDICT = 6
"""Five clips all agree by chance one time in 16, which is too often."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a metric is, the same for every method."""

    name: str
    title: str
    group: str
    better: Better
    definition: str
    unit: str = ""


@dataclass(frozen=True)
class Scored:
    metric: Metric
    values: Tensor | None = None
    """`[N]`: the metric is their mean. NaN where a clip has none."""
    truth_values: Tensor | None = None
    """The same of the true videos."""
    left_out: Tensor | None = None
    """`[G]`: a metric of the whole set, with each part of the clips left out."""


def score_clips(
    about: About,
    values: Tensor,
    *,
    curves: Tensor | None = None,
    truth: Tensor | None = None,
    truth_curves: Tensor | None = None,
    extractor: str = "",
    warning: str = "",
) -> Scored:
    """A metric that each clip has: its mean over the clips, with a bootstrap interval.

    Args:
        values: `[N]`; NaN where a clip has none, which leaves the clip out.
        curves: `[N, F]`, NaN where undefined; the slope is over frames 1 to F - 1, or those of them that are defined.
        truth: `[N]`, the same of the true videos.
        truth_curves: `[N, F]`.
    """
    present = values.isfinite()
    count = int(present.sum())
    notes = [warning] if warning else []
    if count < len(values):
        notes.append(f"undefined for {len(values) - count} of {len(values)} clips, which are left out")
    if 0 < count < FEW_CLIPS:
        notes.append(f"{count} clip{'s' * (count > 1)}: too few for more than a hint")
    metric = Metric(
        **vars(about),
        estimate=bootstrap(values[present]) if count else Interval(value=math.nan),
        truth=math.nan if truth is None else float(truth.nanmean()),
        samples=count,
        sample="clip",
        extractor=extractor,
        warning="; ".join(notes),
        per_clip=values.tolist(),
        per_frame=_by_frame(curves),
        per_frame_truth=_by_frame(truth_curves),
        slope=_slope(curves),
    )
    return Scored(metric, values=values, truth_values=truth)


def score_set(
    about: About,
    value: float,
    left_out: Tensor,
    *,
    samples: int,
    sample: Literal["clip", "frame"],
    truth: float = math.nan,
    curve: Tensor | None = None,
    curve_left_out: Tensor | None = None,
    truth_curve: Tensor | None = None,
    least: float = -math.inf,
    most: float = math.inf,
    extractor: str = "",
    warning: str = "",
) -> Scored:
    """A metric of the whole set, with a jackknife interval.

    Args:
        left_out: `[G]` from `jackknife.leave_out`; empty = no interval.
        curve: `[F]` over frame indices; the slope is over frames 1 to F - 1.
        curve_left_out: `[G, F]`, for the slope's interval.
        least: the smallest value that the metric can have.
        most: the largest.
    """
    gradient = None
    if curve is not None and len(curve) > 2:
        replicates = torch.zeros(0) if curve_left_out is None else least_squares(curve_left_out[:, 1:])
        gradient = jackknife.interval(float(least_squares(curve[None, 1:])[0]), replicates)
    metric = Metric(
        **vars(about),
        estimate=jackknife.interval(value, left_out, least=least, most=most),
        truth=truth,
        samples=samples,
        sample=sample,
        extractor=extractor,
        warning=warning,
        per_frame=[] if curve is None else curve.tolist(),
        per_frame_truth=[] if truth_curve is None else truth_curve.tolist(),
        slope=gradient,
    )
    return Scored(metric, left_out=left_out)


def score_generated(about: About, values: Tensor, truth: Tensor, *, extractor: str = "", warning: str = "") -> Scored:
    """A metric that each frame after the first has: `score_clips` of its mean over these, with its curves.

    Args:
        values: `[N, F - 1]`, NaN where undefined.
        truth: the same of the true videos.
    """
    x, y = from_second(values), from_second(truth)
    return score_clips(
        about,
        x.nanmean(dim=1),
        curves=x,
        truth=y.nanmean(dim=1),
        truth_curves=y,
        extractor=extractor,
        warning=warning,
    )


def from_second(curves: Tensor) -> Tensor:
    """`[N, F - 1]` of pairs of frames -> `[N, F]` with NaN for frame 0."""
    return torch.cat([torch.full((len(curves), 1), math.nan, dtype=curves.dtype), curves], dim=1)


def difference(name: str, a: tuple[str, Scored], b: tuple[str, Scored]) -> Difference:
    """One metric of method a minus method b's on the same clips; by pairs of clips, or with the same clips left out.

    Of a metric that should be as the truth's the better one is nearer to it: the jackknife's interval of
    `|a - truth| - |b - truth|` decides. Below six clips nothing is said.
    """
    (name_a, one), (name_b, other) = a, b
    better, truth = one.metric.better, one.metric.truth
    gap = judged = Interval(value=one.metric.estimate.value - other.metric.estimate.value)
    count = 0
    if one.values is not None and other.values is not None:
        present = one.values.isfinite() & other.values.isfinite()
        if count := int(present.sum()):
            x, y = one.values[present], other.values[present]
            gap = judged = paired_bootstrap(x, y)
            if better == "truth":
                true = torch.full_like(x, math.nan) if one.truth_values is None else one.truth_values[present]
                left_out = jackknife.leave_out(len(x), lambda kept: _nearer(x[kept], y[kept], true[kept]))
                judged = jackknife.interval(_nearer(x, y, true), left_out)
    elif one.left_out is not None and other.left_out is not None and len(one.left_out) == len(other.left_out):
        count = len(one.left_out)
        gap = judged = jackknife.interval(gap.value, one.left_out - other.left_out)
        if better == "truth":
            apart = abs(one.metric.estimate.value - truth) - abs(other.metric.estimate.value - truth)
            judged = jackknife.interval(apart, (one.left_out - truth).abs() - (other.left_out - truth).abs())
    if better == "higher":
        judged = Interval(value=-judged.value, low=-judged.high, high=-judged.low)
    verdict: Verdict = "" if count < FEWEST_FOR_A_VERDICT else _verdict(judged, better)
    return Difference(metric=name, a=name_a, b=name_b, estimate=gap, better=verdict)


def _verdict(lower_is_a: Interval, better: Better) -> Verdict:
    if better == "none" or math.isnan(lower_is_a.low):
        return ""
    if lower_is_a.high < 0:
        return "a"
    return "b" if lower_is_a.low > 0 else "neither"


def _nearer(x: Tensor, y: Tensor, true: Tensor) -> float:
    return float((x.mean() - true.mean()).abs() - (y.mean() - true.mean()).abs())


def _by_frame(curves: Tensor | None) -> list[float]:
    return [] if curves is None else curves.nanmean(dim=0).tolist()


def _slope(curves: Tensor | None) -> Interval | None:
    """Over the generated frames at which the metric is defined, and the clips that have a value at all of them."""
    if curves is None:
        return None
    generated = curves[:, 1:]
    defined = generated[:, generated.isfinite().any(dim=0)]
    whole = defined[defined.isfinite().all(dim=1)]
    return slope(whole) if len(whole) and whole.shape[1] >= 2 else None
