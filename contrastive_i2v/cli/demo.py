"""`contrastive-i2v demo`: clips, fine-tunings that differ in the loss alone, and the report that compares them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import tyro

from contrastive_i2v.cli.calibrate import ClipsOptions
from contrastive_i2v.cli.evaluation_options import SuiteOptions
from contrastive_i2v.cli.evaluation_table import format_over_seeds
from contrastive_i2v.cli.trainings import (
    Run,
    at_each_setting,
    available_networks,
    calibrate_run,
    check_folder,
    check_forms,
    check_validation,
    clip_length,
    evaluate_runs,
    train,
)
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.data.video import as_size
from contrastive_i2v.errors import check_fields
from contrastive_i2v.evaluation.results import EvaluatedClip
from contrastive_i2v.files import locked_folder
from contrastive_i2v.models import load_system
from contrastive_i2v.training import recipes
from contrastive_i2v.training.config import TrainConfig

UNTRAINED = "no-fine-tuning"
PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make clips, fine-tune with and without the contrastive loss, and write a page that compares the two, each sampled
    as everyone samples and at its own calibrated settings.

    The same command goes on where it was stopped, and more seeds or forms are added to what is there.
    """

    output: Path = Path("demo")
    """Folder of everything the demo writes; the page is index.html in it."""
    model: str = "tiny"
    """What is fine-tuned: "tiny", a diffusers folder, or a hub id."""
    forms: tuple[str, ...] = ("contrastive", "baseline")
    """Which losses, by name; literal is the published form of the contrastive one."""
    seeds: int = 1
    """Each form is trained with seeds 0, 1, ...; from 2 on the page tells differences from noise."""
    train_clips: int = 120
    """Clips to train on."""
    test_clips: int = 8
    """Held-out clips: combinations of shape, colour and direction that training never shows."""
    validation_clips: int = 16
    """Other held-out clips, which each model's sampler is calibrated with; 0 = none is."""
    resolution: int = 64
    """Pixels of the clips, and of what the model sees; 64 is what "tiny" was made for."""
    steps: int = 100
    """Optimizer steps of each training."""
    batch_size: int = 16
    """Pairs a step; the negatives come from these."""
    learning_rate: float = 1e-4
    frames: int = 8
    """Length of each video, the given first frame included; frames are 1/5 s apart."""
    sampler_steps: int = 8
    """Scheduler steps a frame of the common settings."""
    guidance_scale: float = 1.0
    """Of the common settings, towards the prompt; 1 = off."""
    image_guidance_scale: float = 1.0
    """Of the common settings, towards the image; 1 = off. With both off sampling takes a third of the time."""

    def __post_init__(self) -> None:
        counts = ("seeds", "train_clips", "test_clips", "resolution", "steps", "batch_size", "sampler_steps")
        check_fields(self, dict.fromkeys(counts, 1) | {"frames": 2}, positive=("learning_rate",), distinct=("forms",))
        check_validation(self.validation_clips)
        check_forms(self.forms)


# What may change when a demo goes on: it leaves the clips and the trained models as they are.
FREE = {"output", "forms", "seeds", "sampler_steps", "guidance_scale", "image_guidance_scale"}


def run(arguments: Sequence[str]) -> None:
    """Parse the options, make the demo and print where its page is."""
    options = tyro.cli(Options, prog="contrastive-i2v demo", args=arguments)
    check_model(options)
    with locked_folder(options.output):
        page = make_demo(options, shlex.join(["contrastive-i2v", "demo", *arguments]))
    print(f"\npage: {page}")


def make_demo(options: Options, command: str) -> Path:
    """Do what is not done yet; returns the page. Raises InputError where the folder holds a demo of other options."""
    check_folder(options, "demo", FREE)
    jobs = [(form, seed) for form in options.forms for seed in range(options.seeds)]
    configs = [run_config(options, form, seed) for form, seed in jobs]
    stages = len(jobs) + 2

    print(f"[1/{stages}] clips", flush=True)
    clips = ShapesConfig(
        train_clips=options.train_clips,
        test_clips=options.test_clips,
        size=options.resolution,
        frames=clip_length(options.frames),
    )
    make_shapes(options.output / "clips", clips)
    validation = None
    if options.validation_clips:
        others = replace(clips, train_clips=0, test_clips=options.validation_clips, seed=clips.seed + 1)
        make_shapes(options.output / "validation", others)
        validation = ClipsOptions(path=options.output / "validation" / "test", clips=None, frames=options.frames)

    suite = SuiteOptions(
        data=options.output / "clips" / "test",
        output=options.output,
        frames=options.frames,
        resolution=options.resolution,
        steps=options.sampler_steps,
        guidance_scale=options.guidance_scale,
        image_guidance_scale=options.image_guidance_scale,
        keyframe_stride=1,
        prediction_scale=1.0,
        prediction_slope=0.0,
    )
    for number, ((form, seed), config) in enumerate(zip(jobs, configs, strict=True), start=2):
        print(f"[{number}/{stages}] training: {form}" + f", seed {seed}" * (options.seeds > 1), flush=True)
        train(config)
        if validation:
            calibrate_run(config.output, validation, suite, command)

    print(f"[{stages}/{stages}] rollouts and report", flush=True)
    runs = [Run(form, seed, config.output) for (form, seed), config in zip(jobs, configs, strict=True)]
    warnings: list[str] = []
    report = evaluate_runs(
        suite,
        at_each_setting(runs, calibrated=validation is not None),
        {f"{UNTRAINED}={options.model}": range(options.seeds), "first-frame": ()},
        available_networks(options.model, warnings),
        title="contrastive_i2v demo: " + " against ".join(options.forms),
        command=command,
        about={"training": f"{options.steps} steps of {options.batch_size} pairs on {options.train_clips} clips"},
        warnings=warnings,
        page=PAGE,
    )
    following = _next_commands(options, configs[0], report.methods[0].clips[0])
    print("\n".join(["", *format_over_seeds(report), "", *following]))
    return options.output / PAGE


def check_model(options: Options) -> None:
    """Raises InputError where the model can't be had, or takes no images of this size."""
    load_system(options.model).check_size(as_size(options.resolution))


def run_config(options: Options, form: str, seed: int) -> TrainConfig:
    """One training of the demo: the tiny recipe of a form, on the demo's clips."""
    config = recipes.tiny(recipes.recipe(form))
    return replace(
        config,
        output=options.output / "runs" / f"{form}-seed{seed}",
        model=options.model,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=seed,
        log_every=max(1, options.steps // 25),
        checkpoint_every=50,
        keep_checkpoints=1,
        data=replace(
            config.data,
            path=options.output / "clips" / "train",
            cache_dir=options.output / "latents",
            resolution=options.resolution,
        ),
        optimizer=replace(
            config.optimizer, learning_rate=options.learning_rate, warmup_steps=min(20, options.steps // 5)
        ),
        preview=replace(config.preview, every=0),
    )


def _next_commands(options: Options, first: TrainConfig, clip: EvaluatedClip) -> list[str]:
    """To sample from what was trained, and to tell differences from noise."""
    image = options.output / "clips" / "test" / f"{clip.name}.mp4"
    sample = ["sample", "--model", str(first.output / "model"), "--image", str(image), "--prompt", clip.caption]
    defaults = Options()
    again = ["demo"]
    for name in (item.name for item in fields(options) if item.name not in ("forms", "seeds")):
        if (value := getattr(options, name)) != getattr(defaults, name):
            again += [f"--{name.replace('_', '-')}", str(value)]
    again += ["--forms", *options.forms, "--seeds", str(max(3, options.seeds + 1))]
    return [f"next: {shlex.join(['contrastive-i2v', *command])}" for command in (sample, again)]
