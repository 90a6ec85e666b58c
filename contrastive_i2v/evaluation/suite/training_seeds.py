"""Trained forms of the loss over their seeds: the spread of training, which resampling the clips doesn't show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from contrastive_i2v.evaluation.results import Evaluated, FormOverSeeds, Metric, SeedNumber
from contrastive_i2v.evaluation.statistics import paired_difference

MOTION_TOLERANCE = 0.15
SHOWN = (
    "fvd",
    "motion_ratio",
    "dynamic_degree",
    "caption_holds",
    "caption_shape_plain_last",
    "mode_coverage",
)


def over_seeds(methods: Sequence[Evaluated]) -> list[FormOverSeeds]:
    """The numbers of each trained form, what others are held against before them, then of the methods that weren't
    trained; [] without a form.

    Numbers are frame MSE at frames 1, F / 2 and F - 1 and on average, FVD, motion ratio, dynamic degree, and what is
    read of captions; those that every trained method has.
    """
    runs: dict[str, dict[int, Evaluated]] = {}
    against = {}
    for method in methods:
        if method.training is not None:
            runs.setdefault(method.training.form, {})[method.training.seed] = method
            against[method.training.form] = method.training.against
    if not runs:
        return []

    def depth(form: str) -> int:
        base = against[form]
        return 1 + depth(base) if base in runs else int(bool(base))

    ordered = sorted(runs, key=depth)
    numbers = {method.name: numbers_of(method) for method in methods}
    trained = [numbers[method.name] for method in methods if method.training is not None]
    shared = {key: one for key, one in trained[0].items() if all(key in found for found in trained)}
    found = []
    for form in ordered:
        ours = {seed: numbers[method.name] for seed, method in runs[form].items()}
        held_against = runs.get(against[form], {})
        theirs = {seed: numbers[method.name] for seed, method in held_against.items()}
        compared = {key: _over_seeds(key, ours, theirs) for key in shared}
        found.append(
            FormOverSeeds(
                form=form,
                seeds=list(ours),
                numbers=list(compared.values()),
                verdict=_verdict(compared),
                against=against[form] if theirs else "",
            )
        )
    for method in methods:
        if method.training is None:
            own = {key: numbers[method.name].get(key, (*shared[key][:2], math.nan)) for key in shared}
            alone = [_over_seeds(key, {0: own}, {}) for key in shared]
            found.append(FormOverSeeds(form=method.name, seeds=[], numbers=alone))
    return found


def numbers_of(method: Evaluated) -> dict[str, tuple[Metric, str, float]]:
    """Key -> metric, title and value of what is compared over seeds."""
    metrics = {metric.name: metric for metric in method.metrics}
    found = {}
    if (error := metrics.get("frame_mse")) is not None:
        frames = len(error.per_frame)
        for frame in sorted({1, frames // 2, frames - 1}):
            key = "last" if frame == frames - 1 else f"frame {frame}"
            found[key] = (error, f"{error.title}, frame {frame}", error.per_frame[frame])
        found["mean"] = (error, f"{error.title}, mean", error.estimate.value)
    for name in SHOWN:
        if (metric := metrics.get(name)) is not None and math.isfinite(metric.estimate.value):
            found[name] = (metric, metric.title, metric.estimate.value)
    return found


Numbers = Mapping[int, Mapping[str, tuple[Metric, str, float]]]
"""Seed -> what `numbers_of` gives."""


def _over_seeds(key: str, ours: Numbers, theirs: Numbers) -> SeedNumber:
    values = {seed: found[key][2] for seed, found in ours.items()}
    metric, title, _ = next(iter(ours.values()))[key]
    seeds = [seed for seed in values if seed in theirs]
    base = [theirs[seed][key][2] for seed in seeds]
    return SeedNumber(
        title=title,
        better=metric.better,
        values=list(values.values()),
        truth=metric.truth,
        baseline=sum(base) / len(base) if base else math.nan,
        difference=paired_difference([values[seed] for seed in seeds], base) if base else None,
    )


def _verdict(numbers: Mapping[str, SeedNumber]) -> str:
    """By the error at the last frame and FVD together; "" without both, without a baseline, or with one shared seed.

    Better (worse) needs both intervals on that side of 0; better also needs a motion within 15 % of the truth's.
    """
    gaps = [numbers[key].difference for key in ("last", "fvd") if key in numbers]
    known = [gap for gap in gaps if gap is not None and math.isfinite(gap.high)]
    if len(known) < 2:
        return ""
    if all(gap.high < 0 for gap in known):
        moves = "motion_ratio" not in numbers or abs(numbers["motion_ratio"].mean - 1) <= MOTION_TOLERANCE
        return "better" if moves else "closer to the truth, but its motion is not within 15 %"
    return "worse" if all(gap.low > 0 for gap in known) else "not told apart"
