"""What demo and experiment share: forms of the loss trained over seeds, and all of them measured in one report."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from contrastive_i2v.cli.calibrate import ClipsOptions, calibrate_model
from contrastive_i2v.cli.evaluate import PIXELS_AT_ONCE
from contrastive_i2v.cli.evaluation_methods import Latents, build_method, load_reference
from contrastive_i2v.cli.evaluation_options import SuiteOptions
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.calibration import CALIBRATION, CalibrationConfig
from contrastive_i2v.evaluation.extractors.loading import load_flow, load_image_extractor, load_video_extractor
from contrastive_i2v.evaluation.results import Report, Training
from contrastive_i2v.evaluation.suite import Known, Networks, evaluate
from contrastive_i2v.models import load_system
from contrastive_i2v.sampler import SamplerOptions
from contrastive_i2v.system import System, default_device
from contrastive_i2v.training.config import TrainConfig, differences, load_config, save_config
from contrastive_i2v.training.forms import BASELINE, FORMS
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.trainer import finish, is_trained

T = TypeVar("T")
NATIVE_STEP = 5
"""Native frames of the generated clips, 25 a second, between two of the model's, 5 a second."""


CALIBRATED = "calibrated"
"""How the report calls a form that is sampled at its own settings and not at those that all forms share."""


@dataclass(frozen=True)
class Run:
    """One training at one way of sampling, as the report knows it."""

    form: str
    seed: int
    folder: Path
    calibrated: bool = False
    """Whether it is sampled as its calibration says."""

    @property
    def name(self) -> str:
        return f"{self.form}-seed{self.seed}" + f"-{CALIBRATED}" * self.calibrated

    def training(self) -> Training:
        """The run with its log; what it is held against is the baseline that is sampled alike, and a calibrated
        baseline against the one that isn't."""
        rows = [] if self.calibrated else read_log(self.folder / "log.jsonl")
        against = "" if self.form == BASELINE and not self.calibrated else BASELINE
        return Training(
            form=self._label(self.form, self.calibrated),
            seed=self.seed,
            against=against and self._label(against, self.calibrated and self.form != BASELINE),
            noise_loss=[[row["step"], row["mse"]] for row in rows if "mse" in row],
        )

    @staticmethod
    def _label(form: str, calibrated: bool) -> str:
        return f"{form}, {CALIBRATED}" if calibrated else form


def check_forms(forms: Sequence[str], *others: str) -> None:
    """Raises InputError for a form that isn't registered, nor one of `others`."""
    if unknown := [form for form in forms if form not in (*FORMS, *others)]:
        raise InputError(f"forms: {', '.join(unknown)} unknown; expected some of {', '.join((*others, *FORMS))}")


def check_validation(clips: int) -> None:
    """Raises InputError for fewer clips than a calibration takes, but for none."""
    if clips < 3 and clips != 0:
        raise InputError(f"validation_clips: expected 0, or at least 3, got {clips}")


def at_each_setting(runs: Sequence[Run], *, calibrated: bool) -> list[Run]:
    """The runs at common settings, and with `calibrated` at their own ones before that."""
    return [*(replace(one, calibrated=True) for one in runs if calibrated), *runs]


def check_folder(options: Any, what: str, free: Collection[str]) -> None:
    """Write the options to `output/WHAT.yaml`; InputError where the folder was made with others but for `free` ones."""
    saved = options.output / f"{what}.yaml"
    if saved.exists() and (changed := differences(load_config(type(options), saved), options, free=free)):
        raise InputError(
            f"{options.output}: holds a {what} of other options ({'; '.join(changed)}); give another --output, or "
            "delete that folder"
        )
    try:
        save_config(options, saved)
    except OSError as error:
        raise InputError(f"output: {options.output} can't be written ({error.strerror or error})") from error


def clip_length(frames: int) -> int:
    """Frames of generated clips that are long enough for rollouts of `frames`."""
    return max(80, NATIVE_STEP * frames)


def train(config: TrainConfig, system: System | None = None) -> Path:
    """`finish`, which says so where there is nothing left to do."""
    if is_trained(config):
        print(f"done before: {config.output / 'model'}")
    return finish(config, system)


def calibrate_run(folder: Path, validation: ClipsOptions, common: SamplerOptions, command: str) -> None:
    """Choose how a trained model is sampled, starting from the common settings, on clips that the report doesn't use;
    what was chosen before stays."""
    if not (folder / "model" / CALIBRATION).exists():
        system, config = load_system(folder), CalibrationConfig()
        system.sampler = common.over(system.sampler)
        calibrate_model(system, folder / "model", validation, folder / "calibration", config=config, command=command)


def available_networks(latents_of: str, warnings: list[str], *, light: bool = False) -> Networks:
    """The networks that are installed; what is missing is added to `warnings`, and its metrics are left out.

    Args:
        light: leave out those of single frames and of the optical flow, which take half of the time.
    """

    def load(what: str, extractor: Callable[..., T]) -> T | None:
        try:
            return extractor(device=str(default_device()))
        except InputError as error:
            warnings.append(f"{what} left out: {error}")
            return None

    if light:
        return Networks(video=load("FVD and KVD are", load_video_extractor), latents=Latents(latents_of))
    return Networks(
        image=load("FID, KID, Inception Score and consistency are", load_image_extractor),
        video=load("FVD and KVD are", load_video_extractor),
        flow=load("The dynamic degree is", load_flow),
        latents=Latents(latents_of),
    )


def evaluate_runs(
    options: SuiteOptions,
    runs: Sequence[Run],
    others: Mapping[str, Sequence[int]],
    networks: Networks,
    *,
    title: str,
    command: str,
    about: dict[str, str],
    warnings: list[str],
    page: str = "report.html",
    known: Known | None = None,
    samples: int = 1,
) -> Report:
    """Measure trained runs, and methods beside them, on the same clips.

    Args:
        options: how all runs are sampled but for calibrated ones, which have their own steps, guidance and scale.
        runs: each is sampled with its training seed, so that a seed's methods share their sampling noise too.
        others: [NAME=]SPEC of a method that wasn't trained here -> its sampling seeds.
        known: as `evaluate` takes it.
        samples: sampling seeds of a run.
    """
    none: dict[str, Any] = dict.fromkeys(item.name for item in fields(SamplerOptions))
    own = replace(options, **none)
    specs = {f"{run.name}={run.folder}": own if run.calibrated else options for run in runs}
    reference = load_reference(options, [*specs, *others])
    seeds = {
        spec: [run.seed + 1000 * number for number in range(samples)] for spec, run in zip(specs, runs, strict=True)
    }
    methods = [
        replace(build_method(spec, specs.get(spec, options), reference, warnings), seeds=tuple(drawn))
        for spec, drawn in {**seeds, **others}.items()
    ]
    if not any(run.calibrated for run in runs):
        warnings.append("All methods are sampled at one setting, which may suit one of them better than another.")
    losses = {f"loss of {form}": FORMS[form].about for form in dict.fromkeys(run.form for run in runs)}
    return evaluate(
        reference,
        methods,
        networks,
        options.output,
        title=title,
        command=command,
        batch_size=max(1, PIXELS_AT_ONCE // math.prod(reference.size)),
        trainings={run.name: run.training() for run in runs},
        umap=False,  # half a minute of one core to compile
        page=page,
        about={**losses, **about},
        warnings=warnings,
        known=known,
    )
