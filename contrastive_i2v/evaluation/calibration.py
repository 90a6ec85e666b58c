"""Calibration: the steps, the scale of the prediction, the keyframes and the guidance with which a trained model's
rollouts are nearest to held-out clips. No weight changes.

Every setting that is tried makes rollouts of the same clips with the same noise. Two numbers are measured in latents,

    error      E = mean over clips and frames of mean_d (z - z_true)^2
    Frechet    F = 2 d(all) - (d(half) + d(other half)) / 2, d the Frechet distance of pooled latents and of their
               pooled changes, over clips and frames: the difference takes away the bias of few clips, which is
               proportional to 1 / N and prefers videos that vary too little

and the objective is `share E / E_0 + (1 - share) F / F_0`, with E_0 and F_0 of the model at a prediction scale of 1,
without keyframes. A setting whose motion is farther from the truth's than a factor 1.15, and farther than at that
scale, has no objective: a still or a flickering video doesn't win. The search goes along one number at a time from
coarse to fine. Of settings within 0.02 of the best the one of the fewest steps is chosen, and of these that of the
nearest keyframes; and no slope, or a scale of 1, where that is as good or where the interval over clips doesn't tell it
apart.

Of several processes (torchrun, accelerate launch) each makes the rollouts of its share of the clips, in the batches of
one process where there is a batch for each, and all go through the same search, on what they measured together.

Sources: the scale is epsilon scaling (Ning et al., arXiv 2308.15321), there tuned by FID on a grid; the interval is of
Kynkaanniemi et al. (arXiv 2404.07724).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import dacite
import torch
from accelerate.utils import reduce
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from contrastive_i2v.errors import InputError, check_fields, one_line
from contrastive_i2v.evaluation.distribution import frechet_distance
from contrastive_i2v.evaluation.results import Interval
from contrastive_i2v.evaluation.suite.jackknife import interval, leave_out
from contrastive_i2v.evaluation.suite.store import load_tensors, save_tensors
from contrastive_i2v.evaluation.videos import ReferenceSet, read_true_frames
from contrastive_i2v.files import digest, parse_json
from contrastive_i2v.processes import process_state
from contrastive_i2v.randomness import seeded
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import fill_in, guidance_branches, rollout
from contrastive_i2v.system import System

CALIBRATION = "calibration.json"
"""Beside a model's system.json: what its sampler was chosen among."""
MOTION = 1.15
"""How far the motion may be from the truth's, as a factor either way."""
GRID = 4
"""Latents are pooled to this many places along each side."""
TOLERANCE = 0.02
"""Objectives that are no farther apart are as good as each other."""
GAIN = 0.01
"""What a trial must lower the objective by for the search to go on in its direction."""


class NothingToCalibrate(InputError):
    """Clips or a model that no sampler can be chosen with."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """What is tried, and what is best."""

    steps: tuple[int, ...] = ()
    """Numbers of scheduler steps; none = the model's own, and a half, a quarter and an eighth of it."""
    error_share: float = 0.5
    """Share of the error in the objective; the rest is the Frechet distance's."""
    guidance: bool = True
    """Whether the guidance scales are searched too, where the model has guidance."""
    seed: int = 0
    """Of the noise."""
    batch_size: int = 64
    """Clips at a time."""

    def __post_init__(self) -> None:
        check_fields(self, {"batch_size": 1}, shares=("error_share",))
        if any(count < 1 for count in self.steps) or len(set(self.steps)) < len(self.steps):
            raise InputError(f"steps: expected numbers from 1 on, none twice, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting, and what its rollouts are like."""

    sampler: Sampler
    error: float
    """E, in normalised latents."""
    frechet: float
    """F."""
    motion: float
    """Mean |z_{t+1} - z_t| against the truth's."""
    objective: float
    """1 = as the model at a prediction scale of 1; infinite where its motion rules it out."""
    calls: int
    """Rows that the network sees a generated window: what it costs."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was found; saved beside the model as `calibration.json`."""

    default: Trial
    """The model's own sampler at a prediction scale of 1."""
    chosen: Trial
    difference: Interval
    """Of the chosen objective to the default's, 95 %, over clips."""
    trials: list[Trial]
    clips: int
    frames: int
    seed: int
    error_share: float
    data: str
    """Name of the clips' folder."""
    error_by_frame: dict[str, list[float]] = field(default_factory=dict)
    """"default" and "chosen" -> E at each generated frame."""

    def to_json(self) -> str:
        """Numbers that aren't finite are null."""

        def plain(value: object) -> object:
            if isinstance(value, float):
                return value if math.isfinite(value) else None
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

        return json.dumps(plain(asdict(self)), indent=1) + "\n"


class Clips:
    """The latents of held-out clips, and rollouts of them.

    Raises NothingToCalibrate for a system that makes images alone: it has no truth to be nearer to.
    """

    def __init__(self, system: System, reference: ReferenceSet, config: CalibrationConfig) -> None:
        window = system.window
        if not (window.rolls or window.given):
            raise NothingToCalibrate(
                f"{system.config.kind} makes images from text here, which have no true frames to be calibrated by; "
                "expected a model of videos"
            )
        self.system, self.config = system, config
        each = system.codec.temporal_downscale
        frames = 1 + (reference.frames - 1) // each * each  # of whole latents
        if frames == 1:
            raise InputError(
                f"frames={reference.frames}: a latent of {system.config.kind} holds {each} frames after the first; "
                f"expected at least {1 + each}, to calibrate by"
            )
        self.names, self.captions = [one.name for one in reference.clips], [one.caption for one in reference.clips]
        self.text = system.encode_text(self.captions)
        own, first = [], []
        hidden = not process_state().is_main_process
        for clip in tqdm(reference.clips, desc="latents", unit="clip", leave=False, disable=hidden):
            pixels = read_true_frames(clip, reference.size).float() / 127.5 - 1
            own.append(system.codec.sample(system.codec.encode(pixels[None, :frames]))[0].float())
            first.append(pixels[0])
        self.own = torch.stack(own)  # [N, f, C, h, w], the autoencoder's own latents
        self.first = torch.stack(first)  # [N, 3, H, W] in [-1, 1]
        self.truth = system.codec.normalize(self.own)
        self.fps = reference.frame_rate

    def generate(self, sampler: Sampler) -> Tensor:
        """[N, f, C, h, w], normalised; the frames that are given are the truth's."""
        system, parts = self.system, []
        for first in range(0, len(self.own), self.config.batch_size):
            rows = slice(first, first + self.config.batch_size)
            own, text = self.own[rows], {name: value[rows] for name, value in self.text.items()}
            seeds = [self.seed_of(name) for name in self.names[rows]]
            if system.window.rolls:
                video = rollout(
                    system,
                    own[:, 0],
                    text,
                    frames=own.shape[1],
                    seeds=seeds,
                    sampler=sampler,
                    fps=self._told_fps(),
                    pixels=self.first[rows],
                )
            else:
                video = fill_in(system, own[:, list(system.window.given)], text, seeds=seeds, sampler=sampler)
            parts.append(video.float())
        return torch.cat(parts)

    def pick(self, rows: Sequence[int]) -> Clips:
        """Some of the clips alone."""
        few, places = copy.copy(self), list(rows)
        few.names, few.captions = [self.names[row] for row in rows], [self.captions[row] for row in rows]
        few.own, few.truth, few.first = self.own[places], self.truth[places], self.first[places]
        few.text = {name: value[places] for name, value in self.text.items()}
        return few

    def share(self, process: int, processes: int) -> list[int]:
        """The rows of a process: whole batches in turn, smaller ones where there are fewer of them than processes."""
        size = min(self.config.batch_size, math.ceil(len(self.names) / processes))
        return [row for row in range(len(self.names)) if row // size % processes == process]

    def seed_of(self, name: str) -> int:
        """A clip's noise is its own, in any set of clips."""
        return int(torch.randint(2**62, (1,), generator=seeded(self.config.seed, "calibration", name)))

    def measure(self, video: Tensor) -> dict[str, Tensor]:
        """`error [N, g]`, `features [N, g, d]` and `motion [N]` of g frames that are generated."""
        made = self.generated
        return {
            "error": (video - self.truth)[:, made].square().flatten(2).mean(dim=2).double().cpu(),
            "features": frame_features(video)[:, [i - 1 for i in made if i]].cpu(),
            "motion": video.diff(dim=1).abs().flatten(1).mean(dim=1).double().cpu(),
        }

    @property
    def generated(self) -> list[int]:
        """The frames that differ from the truth."""
        given = [0] if self.system.window.rolls else list(self.system.window.given)
        return [i for i in range(self.truth.shape[1]) if i not in given]

    def _told_fps(self) -> float | None:
        return None if self.fps == self.system.fps else self.fps


def frame_features(video: Tensor) -> Tensor:
    """What the Frechet distance sees of each frame after the first: `[N, f - 1, d]`, d = 2 C 16.

    Latents pooled to 4 x 4 places, and the absolute change since the frame before, pooled as well.

    Args:
        video: `[N, f, C, h, w]`.
    """

    def pooled(frames: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(frames.flatten(0, 1), GRID).reshape(*frames.shape[:2], -1)

    return torch.cat([pooled(video[:, 1:]), pooled(video.diff(dim=1).abs())], dim=2).double()


def network_hash(system: System) -> str:
    """sha256 of the weights, the latents' and texts' fingerprint and what the scheduler is."""
    total = hashlib.sha256(f"{system.fingerprint} {system.config} {sorted(system.scheduler.config.items())}".encode())
    for key, value in sorted(system.network.state_dict().items()):
        total.update(key.encode())
        total.update(value.detach().cpu().float().contiguous().numpy())
    return total.hexdigest()


def calibrate(
    system: System, reference: ReferenceSet, config: CalibrationConfig, *, folder: Path, progress: bool = True
) -> tuple[Calibration, Clips]:
    """Find the sampler with which rollouts are nearest to held-out clips.

    Every trial is kept in `folder/trials`, so that the same call goes on where it was stopped, and another objective
    costs no rollout that was made before. The same clips, weights and seed give the same result, and every process of
    several, which all call this, gets it; the main one alone reads and writes the folder.

    Returns:
        what was found, and the clips, whose `generate` shows it.

    Raises:
        NothingToCalibrate: fewer than three clips (five of two frames), a system without true frames, or a model whose
            own rollouts aren't finite; in every process alike.
        InputError: the folder can't be written.
    """
    generated = (reference.frames - 1) // system.codec.temporal_downscale
    least = 5 if generated == 1 else 3  # half of them, without one, must have two generated latent frames
    if len(reference.clips) < least:
        raise NothingToCalibrate(
            f"{reference.folder}: {len(reference.clips)} clips to calibrate with; expected at least {least}"
        )
    state = process_state()
    search = Search(Clips(system, reference, config), config, folder / "trials", stamp_of(system, reference, config))
    with tqdm(desc="calibration", unit="trial", disable=not (progress and state.is_main_process)) as bar:

        def finished(trial: Trial) -> None:
            bar.set_postfix_str(str(trial.sampler))
            bar.update()

        search.finished = finished
        chosen = search.run()
    default = search.default
    left_out = search.left_out(chosen) - search.left_out(default)
    return Calibration(
        default=default,
        chosen=chosen,
        difference=interval(chosen.objective - default.objective, left_out),
        trials=list(search.trials.values()),
        clips=len(reference.clips),
        frames=reference.frames,
        seed=config.seed,
        error_share=config.error_share,
        data=reference.folder.name,
        error_by_frame={
            name: search.kept[trial.sampler]["error"].mean(dim=0).tolist()
            for name, trial in (("default", default), ("chosen", chosen))
        },
    ), search.clips


def stamp_of(system: System, reference: ReferenceSet, config: CalibrationConfig) -> str:
    """What a trial's numbers hold for."""
    clips = [clip.stamp for clip in reference.clips]
    return digest([network_hash(system), clips, reference.setting, config.seed])


class Search:
    """Trials, remembered; from coarse to fine along one number of the sampler at a time."""

    def __init__(self, clips: Clips, config: CalibrationConfig, folder: Path, stamp: str) -> None:
        self.clips, self.config, self.folder, self.stamp = clips, config, folder, stamp
        self.state = process_state()
        self.truth = self.from_main(clips.measure(clips.truth))
        self.kept: dict[Sampler, dict[str, Tensor]] = {}
        self.trials: dict[Sampler, Trial] = {}
        self.finished: Callable[[Trial], object] = lambda trial: None
        self.base = replace(clips.system.sampler, keyframe_stride=1, prediction_scale=1.0, prediction_slope=0.0)
        # noise predictions are divided by the signal, which is small where most is decided
        self.unit = 0.01 if clips.system.schedule.prediction_type == "epsilon" else 0.04

    def run(self) -> Trial:
        """The best setting, as simple as the intervals allow."""
        self.default = self.at(self.base)
        if not math.isfinite(self.default.error):
            raise NothingToCalibrate(
                "the model's own rollouts hold NaN or infinity; check its weights, or sample in float32"
            )
        best = self.along(self.default, "prediction_scale", self.unit, levels=2)  # down to half a unit
        if self.config.guidance:
            for name in ("guidance_scale", "image_guidance_scale"):
                if (scale := getattr(self.base, name)) != 1:
                    best = self.along(best, name, scale / 4, levels=2)
        found = [best]
        for steps in self.steps_tried():
            start = self.at(replace(found[-1].sampler, steps=steps))
            found.append(self.along(start, "prediction_scale", self.unit / 2, levels=1))
        # at every number of steps: with many of them frames between keyframes may move too much
        strides = self.strides_tried()
        found += [self.at(replace(trial.sampler, keyframe_stride=stride)) for trial in found for stride in strides]
        least = min(trial.objective for trial in found)
        enough = [trial for trial in found if trial.objective <= least + TOLERANCE]
        best = min(enough, key=lambda trial: (trial.sampler.steps, trial.sampler.keyframe_stride))
        if best.sampler.keyframe_stride > 1:
            best = self.along(best, "prediction_scale", self.unit / 2, levels=1)
        best = self.along(best, "prediction_slope", 4 * self.unit, levels=1)
        straight = replace(best.sampler, prediction_slope=0.0)
        simpler = [self.at(replace(straight, prediction_scale=1.0)), self.at(straight)]
        return next((trial for trial in simpler if not self.told_apart(trial, best)), best)

    def strides_tried(self) -> list[int]:
        """Of keyframes: the powers of two that the model was trained with and that leave a frame between."""
        system, frames = self.clips.system, self.truth["error"].shape[1]
        most = int(min((system.max_stride or 1) * self.clips.fps / system.fps, frames)) if system.window.ahead else 1
        return [2**k for k in range(1, most.bit_length())]

    def steps_tried(self) -> list[int]:
        """Falling: each search begins at the scale that was best at more steps."""
        own = self.base.steps
        tried = self.config.steps or [max(1, own // divisor) for divisor in (2, 4, 8)]
        return sorted({steps for steps in tried if steps != own}, reverse=True)

    def along(self, start: Trial, name: str, width: float, *, levels: int) -> Trial:
        """The best trial on a line through `start`: steps of `width` as long as they help, then halves of it."""
        best, most = start, 2 * start.sampler.prediction_scale
        low, high = (-most, most) if name == "prediction_slope" else (0.0, math.inf)
        for level in range(levels):
            step = width / 2**level
            for direction in (step, -step):
                while low < (value := round(getattr(best.sampler, name) + direction, 4)) < high:
                    trial = self.at(replace(best.sampler, **{name: value}))
                    if not trial.objective < best.objective - GAIN:
                        break
                    best = trial
        return best

    def told_apart(self, trial: Trial, best: Trial) -> bool:
        """Whether the objective is worse than the best, by more than the tolerance and its interval over clips."""
        if not math.isfinite(trial.objective):
            return True
        gap = interval(trial.objective - best.objective, self.left_out(trial) - self.left_out(best))
        return gap.value > TOLERANCE and gap.low > 0

    def at(self, sampler: Sampler) -> Trial:
        """The trial of a setting, made where it isn't known."""
        if sampler not in self.trials:
            file = self.folder / f"{digest(asdict(sampler))}.safetensors"
            kept = load_tensors(file, self.stamp) if self.state.is_main_process else None
            if self.from_main({"known": torch.tensor(int(kept is not None))})["known"]:
                kept = self.from_main(kept or self.truth)
            else:
                kept = self.measure(sampler)
                if self.state.is_main_process:
                    save_tensors(file, kept, self.stamp)
            self.kept[sampler] = kept
            self.trials[sampler] = self.judge(sampler)
            self.finished(self.trials[sampler])
        return self.trials[sampler]

    def measure(self, sampler: Sampler) -> dict[str, Tensor]:
        """`Clips.measure` of a setting's rollouts, each made by the process that has its clip."""
        rows = self.clips.share(self.state.process_index, self.state.num_processes)
        kept = {name: torch.zeros_like(value) for name, value in self.truth.items()}
        if rows:
            mine = self.clips.pick(rows)
            for name, value in mine.measure(mine.generate(sampler)).items():
                kept[name][rows] = value
        return self.summed(kept)

    def from_main(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The main process's tensors, in all of them; the others give tensors of the same shapes."""
        if self.state.is_main_process:
            return self.summed(tensors)
        return self.summed({name: torch.zeros_like(value) for name, value in tensors.items()})

    def summed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum over the processes, exact where all but one of them have zeros."""
        if self.state.num_processes == 1:
            return tensors
        return {name: reduce(tensors[name].to(self.state.device), "sum").cpu() for name in sorted(tensors)}

    def judge(self, sampler: Sampler) -> Trial:
        """The numbers of a setting whose rollouts were measured."""
        kept = self.kept[sampler]
        calls = sum(rows for rows in self.rows_by_step(sampler))
        motion = float(kept["motion"].sum() / self.truth["motion"].sum())
        finite = all(bool(value.isfinite().all()) for value in kept.values())
        error, frechet = self.numbers(kept, torch.arange(len(kept["error"]))) if finite else (math.inf, math.inf)
        trial = Trial(sampler=sampler, error=error, frechet=frechet, motion=motion, objective=1.0, calls=calls)
        return trial if sampler == self.base else replace(trial, objective=self.objective(trial))

    def objective(self, trial: Trial) -> float:
        """The equation at the head of this file."""
        apart = [abs(math.log(max(one.motion, 1e-9))) for one in (trial, self.default)]
        if not math.isfinite(trial.error) or apart[0] > max(math.log(MOTION), apart[1]):
            return math.inf
        return self.weighed((trial.error, trial.frechet), (self.default.error, self.default.frechet))

    def weighed(self, ours: tuple[float, float], base: tuple[float, float]) -> float:
        """A number that is 0 in both is as good as the base's."""
        error, frechet = (a / b if b > 0 else 1.0 if a == b else math.inf for a, b in zip(ours, base, strict=True))
        return self.config.error_share * error + (1 - self.config.error_share) * frechet

    def numbers(self, kept: dict[str, Tensor], rows: Tensor) -> tuple[float, float]:
        """E and F of some clips."""

        def distance(some: Tensor) -> float:
            return frechet_distance(*(one["features"][some].flatten(0, 1) for one in (kept, self.truth)))

        halves = (distance(rows[0::2]) + distance(rows[1::2])) / 2
        return float(kept["error"][rows].mean()), max(0.0, 2 * distance(rows) - halves)

    def left_out(self, trial: Trial) -> Tensor:
        """The objective when each tenth of the clips is left out: `[G]`."""
        kept, base = self.kept[trial.sampler], self.kept[self.base]

        def objective(rows: Tensor) -> float:
            return self.weighed(self.numbers(kept, rows), self.numbers(base, rows))

        return leave_out(len(self.truth["motion"]), objective)

    def rows_by_step(self, sampler: Sampler) -> Iterator[int]:
        """Rows of the network a sample, at each step: one, or one a branch where guidance acts."""
        fractional = sampler.history_level > 0
        branches = len(guidance_branches(sampler.guidance_scale, sampler.image_guidance_scale, fractional))
        low, high = sampler.guidance_interval
        for step in range(sampler.steps):
            share = (step + 0.5) / sampler.steps  # whatever the scheduler's spacing, to within a step
            yield branches if low <= share <= high else 1


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in both error and Frechet distance, by rising error."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.error, trial.frechet)):
        if math.isfinite(trial.error) and (not front or trial.frechet < front[-1].frechet):
            front.append(trial)
    return front


def read_default(file: Path) -> Sampler | None:
    """The sampler that a model had before it was calibrated, from its `calibration.json`; None without the file.

    Raises InputError for a damaged one.
    """
    if not file.is_file():
        return None
    try:
        values = parse_json(file.read_text(encoding="utf-8"))["default"]["sampler"]
        return dacite.from_dict(Sampler, values, dacite.Config(strict=True, cast=[tuple, float]))
    except (OSError, ValueError, TypeError, KeyError, dacite.DaciteError) as error:
        raise InputError(
            f"{file}: can't be read ({one_line(error)}); expected what calibrate writes: delete it to calibrate anew"
        ) from error
