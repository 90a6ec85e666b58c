"""What an evaluation found: plain data that the report lays out and `report.json` holds.

A `Report` has one `Evaluated` for each method (a generator of videos) and, where there are several, the paired
`Difference`s between them. Nothing here computes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import dacite

from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import parse_json, write_whole

Better = Literal["lower", "higher", "truth", "none"]
"""Which way is better; "truth" = closer to the value that the true videos have, "none" = only describes."""
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval; NaN bounds where there is none (one sample, or a metric without one)."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of one method."""

    name: str
    """Key, the same in every method: "fvd", "clip_score_source", "temporal_flickering", ..."""
    title: str
    """What people call it: "FVD"."""
    group: str
    """Heading it stands under: "Distribution", "Caption", "Prompt", "Over time", "Fidelity", "Latent space"."""
    better: Better
    definition: str
    """One sentence with the equation, its conventions and its source."""
    estimate: Interval
    truth: float = math.nan
    """The same metric of the true videos, where it has one."""
    unit: str = ""
    samples: int = 0
    """N: what the estimate is over (frames, clips or pairs); `sample` says which."""
    sample: Literal["clip", "frame", "pair"] = "clip"
    extractor: str = ""
    """Key into Report.extractors; "" = computed from pixels or latents."""
    warning: str = ""
    """Why not to trust it, in one sentence; "" = nothing known against it."""
    per_clip: list[float] = field(default_factory=list)
    """One a clip, in the order of Evaluated.clips; empty for metrics of the whole set."""
    per_frame: list[float] = field(default_factory=list)
    """One a frame index, NaN where undefined (frame 0 of a metric on pairs of frames); empty where it has none."""
    per_frame_truth: list[float] = field(default_factory=list)
    slope: Interval | None = None
    """Change of `per_frame` a frame, by least squares over the generated frames."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedClip:
    """One generated video and its counterparts; paths are relative to report.json where they can be."""

    name: str
    caption: str
    video: str
    """The generated video, as a file."""
    truth: str = ""
    """The true video, as a file; "" = none."""


@dataclass(frozen=True, kw_only=True)
class LatentMap:
    """Trajectories in a plane: where the latents of true and generated videos lie."""

    method: str
    """"PCA" or "UMAP"."""
    points: list[list[list[float]]]
    """[clip][frame] = [x, y] of the generated latents."""
    truth: list[list[list[float]]]
    """The same of the true ones, in the same plane."""
    explained: list[float] = field(default_factory=list)
    """Share of the variance along each axis (PCA)."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Which of several trainings made a method."""

    form: str
    """Of the loss."""
    seed: int
    """Of batches, noise and sampling: shared with the same seed of the other forms, so that they are paired."""
    against: str = ""
    """The form that this one is held against; "" = none, as the baseline."""
    noise_loss: list[list[float]] = field(default_factory=list)
    """[optimizer step, mean squared error of the prediction], which every form has, a mean since the entry before."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One method: where its videos come from, and every metric of them."""

    name: str
    kind: Literal["checkpoint", "pipeline", "videos", "first-frame", "retrieval"]
    provenance: dict[str, str]
    """Model path, weights' hash, config, seeds, sampler settings, commit: whatever makes the videos again."""
    metrics: list[Metric]
    clips: list[EvaluatedClip]
    maps: list[LatentMap] = field(default_factory=list)
    seconds: float = 0.0
    training: Training | None = None


@dataclass(frozen=True, kw_only=True)
class SeedNumber:
    """One number of a form of the loss over its training seeds."""

    title: str
    better: Better
    values: list[float]
    """One a seed, in the order of FormOverSeeds.seeds."""
    truth: float = math.nan
    baseline: float = math.nan
    """The baseline's mean over the seeds that both have."""
    difference: Interval | None = None
    """Mean of form minus baseline over those seeds with Student's 95 % interval; None for the baseline itself."""

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def is_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        gap = self.difference
        return gap is not None and (gap.low > 0 or gap.high < 0)


@dataclass(frozen=True, kw_only=True)
class FormOverSeeds:
    """A form of the loss over its training seeds; or a method that wasn't trained here, without seeds and verdict."""

    form: str
    seeds: list[int]
    numbers: list[SeedNumber]
    verdict: str = ""
    against: str = ""
    """The form that the differences and the verdict are against; "" = none."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Metric of `a` minus metric of `b` on the same clips, with its 95 % interval from paired resampling of clips."""

    metric: str
    a: str
    b: str
    estimate: Interval
    better: Literal["a", "b", "neither", ""] = ""
    """Which one the interval says is better; "neither" when it holds 0; "" when nothing can be said (no interval)."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network that metrics are computed on."""

    name: str
    dimension: int
    weights: str
    """Package and version, or file and hash."""
    resize: str
    """What happens to frames before the network."""
    stands_in_for: str = ""
    """The network of the literature's numbers, where this one is an offline substitute: no number compares with it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole evaluation or comparison."""

    title: str
    command: str
    created: str
    """ISO 8601, UTC."""
    methods: list[Evaluated]
    extractors: dict[str, Extractor]
    provenance: dict[str, str]
    """Data folder and its hash, number of clips and frames, size, versions, device, commit, seed, seconds."""
    differences: list[Difference] = field(default_factory=list)
    over_seeds: list[FormOverSeeds] = field(default_factory=list)
    """Empty where no method has a `training`."""
    warnings: list[str] = field(default_factory=list)
    format: int = FORMAT


def save_report(report: Report, path: Path) -> None:
    """Write `report.json`, whole or not at all. NaN and infinity (the PSNR of equal frames) are written as null, so
    that any JSON reader takes it; `load_report` reads both as NaN."""
    text = json.dumps(finite_or_null(asdict(report)), indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def load_report(path: Path) -> Report:
    """Read what `save_report` wrote. Raises InputError naming the file."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); expected a report.json of evaluate") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({one_line(error)})") from error
    if not isinstance(values, Mapping) or values.get("format") != FORMAT:
        raise InputError(f"{path}: not a report of this version; expected a report.json of evaluate or compare")
    hooks = {float: lambda value: math.nan if value is None else float(value) if isinstance(value, int) else value}
    try:
        return dacite.from_dict(Report, values, dacite.Config(strict=True, type_hooks=hooks))
    except (dacite.DaciteError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: {one_line(error)}") from error


def finite_or_null(value: Any) -> Any:
    """Plain data with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
