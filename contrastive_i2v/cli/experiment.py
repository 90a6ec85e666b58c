"""`contrastive-i2v experiment`: every form of the loss from the same start, at equal compute, over several seeds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from contrastive_i2v.cli.calibrate import ClipsOptions
from contrastive_i2v.cli.evaluation_options import SuiteOptions
from contrastive_i2v.cli.evaluation_table import format_over_seeds
from contrastive_i2v.cli.experiment_material import Footage, find_start, make_clips
from contrastive_i2v.cli.trainings import (
    Run,
    at_each_setting,
    available_networks,
    calibrate_run,
    check_folder,
    check_forms,
    check_validation,
    evaluate_runs,
    train,
)
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.evaluation.results import Report
from contrastive_i2v.evaluation.suite import Known, Networks
from contrastive_i2v.files import locked_folder, write_whole
from contrastive_i2v.models import load_system, tiny
from contrastive_i2v.models.lora import base_hash
from contrastive_i2v.system import DESCRIPTION
from contrastive_i2v.training.config import DataConfig, OptimizerConfig, PreviewConfig, TrainConfig
from contrastive_i2v.training.forms import FORMS
from contrastive_i2v.training.trainer import is_trained


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which form of training helps? All train from the same weights on the same batches at equal compute, are sampled
    at their own calibrated settings and at common ones, and are compared.

    Seed s of every form shares its batches, noise and sampling noise with seed s of the others, so that differences
    are paired. The same command goes on where it was stopped, and adds forms and seeds to what is there; the report is
    written anew after every training.
    """

    output: Path = Path("runs/experiment")
    """Folder of everything; the report is report.html in it, the numbers report.json."""
    forms: tuple[str, ...] = ("baseline", "contrastive", "literal")
    """Which forms, by name; `--forms all` is every one there is. "baseline" is what the others are held against, and
    "half-updates" and "own-sample-positive" are controls."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each form is trained once for each. Runs that the folder holds already stay in the table."""
    start: str = "weak"
    """What the forms begin with. weak: a small model after `start_steps` without any contrastive term; packaged: the
    tiny model; text-to-image: a base that knows no image yet, just grown to take one; or a model's folder, of any
    system that takes 64 x 64 pixels."""
    footage: Footage = "shapes"
    """shapes; open: captions say neither direction nor speed, so samples must choose; same: one caption for all;
    camera: pans and zooms over photographs."""
    start_steps: int = 1300
    """Steps of a weak start or a text-to-image base, from random weights."""
    steps: int | None = None
    """Steps of each form; a form whose steps cost more has fewer. None = 400, 120 and 300 for the three starts, 300 for
    a folder."""
    batch_size: int | None = None
    """Windows a step; the negatives come from these. None = 32, 16 and 32; 8 for a folder."""
    learning_rate: float | None = None
    """Falls to 0 along a cosine. None = 2e-3, 2e-4 and 1e-3; 2e-4 for a folder."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of the UNet's levels, but for a packaged start; the last one attends to the prompt. 1 M parameters."""
    condition_noise: float = 0.5
    """Of every form: noise on the conditioning latents in training, against drift in the rollouts."""
    train_clips: int = 240
    """Clips to train on."""
    validation_clips: int = 24
    """Clips that each model's sampler is calibrated with; 0 = all are sampled at common settings alone."""
    test_clips: int = 64
    """Held-out clips: combinations of shape, colour and direction that training never shows."""
    test_seed: int = 101
    """Seed of the held-out clips: search with one, report with another."""
    frames: int = 16
    """Length of each rollout, the given first frame included; frames are 1/5 s apart."""
    sampler_steps: int = 8
    """DDIM steps a frame of the common settings; no guidance."""
    samples: int = 1
    """Videos of each clip; an open future's mode coverage needs 2."""
    light: bool = False
    """Leave out the metrics of image features and of optical flow, which take half of the time."""
    quick: bool = False
    """A run of a minute that only shows that all works: two forms, one seed, few steps and clips."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("steps", "batch_size", "train_clips", "sampler_steps", "samples"), 1)
        least |= {"condition_noise": 0, "start_steps": 0, "test_clips": 2, "frames": 2}
        check_fields(self, least, positive=("learning_rate",), distinct=("forms", "seeds"))
        check_validation(self.validation_clips)
        find_start(self.start)
        if not self.widths or any(width < 16 or width % 16 for width in self.widths):
            raise InputError(f"widths: expected multiples of 16, got {self.widths}")
        check_forms(self.forms, "all")

    @property
    def chosen(self) -> list[str]:
        """The forms' names."""
        return list(FORMS) if "all" in self.forms else list(self.forms)


FREE = {"output", "forms", "seeds", "quick"}  # what may change when an experiment goes on
QUICK = {
    "forms": ("baseline", "contrastive"),
    "seeds": (0,),
    "start_steps": 8,
    "steps": 4,
    "batch_size": 4,
    "train_clips": 6,
    "validation_clips": 3,
    "test_clips": 3,
    "frames": 4,
    "sampler_steps": 2,
}


def run(arguments: Sequence[str]) -> None:
    """Parse the options, run the experiment and print its table."""
    options = tyro.cli(Options, prog="contrastive-i2v experiment", args=arguments)
    options = replace(options, **QUICK) if options.quick else options  # type: ignore[arg-type]
    command = shlex.join(["contrastive-i2v", "experiment", *arguments])
    warnings: list[str] = []
    networks = available_networks("tiny", warnings, light=options.light)
    if networks.video is None:  # before the hours of training, as the verdict needs it
        raise InputError(warnings[0])
    with locked_folder(options.output):
        report = make_experiment(options, command, networks, warnings)
    print("\n".join([*format_over_seeds(report), "", f"report: {options.output / 'report.html'}"]))


def make_experiment(options: Options, command: str, networks: Networks, warnings: Sequence[str]) -> Report:
    """Do what is not done yet, with a report of what there is after every training; returns the last report.

    Raises InputError where the folder holds an experiment of other options.
    """
    check_folder(options, "experiment", FREE)
    make_clips(
        options.output,
        options.footage,
        train=options.train_clips,
        validation=options.validation_clips,
        test=options.test_clips,
        frames=options.frames,
        seed=options.test_seed,
    )
    start = find_start(options.start)
    model = start.make(train_config(options, "start", 0), options.start_steps, options.widths)
    check_start(options.output, model)
    jobs = [(form, seed) for seed in options.seeds for form in options.chosen]
    configs = [form_config(options, form, seed, model) for form, seed in jobs]
    known: Known = {}
    for number, ((form, seed), config) in enumerate(zip(jobs, configs, strict=True), start=1):
        print(f"[{number}/{len(jobs)}] {form}, seed {seed}", flush=True)
        done_before = is_trained(config)
        train(config)
        if options.validation_clips:
            held_out = ClipsOptions(path=options.output / "validation" / "test", clips=None, frames=options.frames)
            calibrate_run(config.output, held_out, common_options(options), command)
        missing = sum(not is_trained(later) for later in configs[number:])
        if missing and not done_before:
            so_far = f"{missing} of {len(jobs)} trainings are still to come: the same command goes on."
            evaluate_experiment(options, command, networks, [so_far, *warnings], known)
    return evaluate_experiment(options, command, networks, warnings, known)


def check_start(folder: Path, model: Path) -> None:
    """Write the hash of the start's weights to `folder/start.sha256`. Raises InputError where the folder's trainings
    began with others: those of a newer packaged model, say."""
    saved, own = folder / "start.sha256", base_hash(load_system(str(model)))
    if saved.exists() and saved.read_text().strip() != own:
        raise InputError(
            f"{folder}: its trainings began with other weights than {model} has now; give another --output"
        )
    write_whole(saved, lambda part: part.write_text(own + "\n"))


def evaluate_experiment(
    options: Options, command: str, networks: Networks, warnings: Sequence[str], known: Known
) -> Report:
    """Measure every finished run of the folder, and write the report; what was measured before is kept."""
    runs = find_runs(options.output, calibrated=options.validation_clips > 0)
    said = f"{options.start} start, {options.footage}"
    return evaluate_runs(
        common_options(options),
        runs,
        {"first-frame": ()},
        networks,
        title=f"{', '.join(dict.fromkeys(run.form for run in runs))} over training seeds: {said}",
        command=command,
        about={"training": f"{said}, {steps_of(options)} steps of the baseline; the other forms cost as much"},
        warnings=[*warnings],
        known=known,
        samples=options.samples,
    )


def common_options(options: Options) -> SuiteOptions:
    """How all forms are sampled and measured."""
    return SuiteOptions(
        data=options.output / "held-out" / "test",
        output=options.output,
        frames=options.frames,
        resolution=tiny.RESOLUTION,
        steps=options.sampler_steps,
        guidance_scale=1.0,
        image_guidance_scale=1.0,
        keyframe_stride=1,
        prediction_scale=1.0,
        prediction_slope=0.0,
    )


def find_runs(output: Path, *, calibrated: bool) -> list[Run]:
    """Every finished run of the folder, by form in the order of `FORMS` and by seed; with `calibrated` twice, at common
    settings and at its own."""
    found = []
    for form in FORMS:
        folders = [index.parents[1] for index in output.glob(f"runs/{form}-seed*/model/{DESCRIPTION}")]
        found += sorted((Run(form, int(one.name.rpartition("-seed")[2]), one) for one in folders), key=lambda r: r.seed)
    return at_each_setting(found, calibrated=calibrated)


def form_config(options: Options, form: str, seed: int, model: Path) -> TrainConfig:
    """One run: the form's training, from the seed's start, at the compute of the baseline's steps."""
    config = train_config(options, f"{form}-seed{seed}", seed)
    return FORMS[form].apply(replace(config, model=str(model), equal_compute=True))


def steps_of(options: Options) -> int:
    """The baseline's steps."""
    return options.steps or find_start(options.start).steps


def train_config(options: Options, name: str, seed: int) -> TrainConfig:
    """What all trainings share: next-frame pairs of the clips, a moving average, no previews."""
    usual = find_start(options.start)
    return TrainConfig(
        output=options.output / "runs" / name,
        model="(built by experiment)",
        system=usual.system,
        steps=steps_of(options),
        batch_size=options.batch_size or usual.batch_size,
        condition_noise=options.condition_noise,
        ema_decay=0.99,
        seed=seed,
        log_every=20,
        checkpoint_every=200,
        keep_checkpoints=1,
        data=DataConfig(
            path=options.output / "clips" / "train",
            cache_dir=options.output / "latents",
            resolution=tiny.RESOLUTION,
            frames=FramesConfig(offset_std=0.0, windows_per_clip=30),
        ),
        optimizer=OptimizerConfig(
            learning_rate=options.learning_rate or usual.learning_rate, betas=(0.9, 0.99), warmup_steps=20
        ),
        preview=PreviewConfig(every=0),
    )
