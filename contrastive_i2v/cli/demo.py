"""`contrastive-i2v demo`: clips, fine-tunings that differ in the loss alone, rollouts, a page that compares them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import transformers
import tyro
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.cli.demo_report import BASE, STILL, Outcome, build_report, format_table, results
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.data.video import write_whole
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.report import build_page
from contrastive_i2v.models import InstructPix2Pix
from contrastive_i2v.training import recipes
from contrastive_i2v.training.checkpoint import list_checkpoints
from contrastive_i2v.training.config import PreviewConfig, TrainConfig, differences, load_config, save_config
from contrastive_i2v.training.preview import load_held_out, roll_out
from contrastive_i2v.training.trainer import Trainer, is_trained

Form = Literal["contrastive", "baseline", "literal"]
NATIVE_STEP = 5  # native frames of the 25 fps clips between two of the model's


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make clips, fine-tune with and without the contrastive loss, and write a page that compares the two.

    The same command goes on where it was stopped, and more seeds or forms are added to what is there.
    """

    output: Path = Path("demo")
    """Folder of everything the demo writes; the page is index.html in it."""
    model: str = "tiny"
    """What is fine-tuned: "tiny", a diffusers folder, or a hub id."""
    forms: tuple[Form, ...] = ("contrastive", "baseline")
    """Which losses; literal is the published form of the contrastive one."""
    seeds: int = 1
    """Each form is trained with seeds 0, 1, ...; from 2 on the page tells differences from noise."""
    train_clips: int = 120
    """Clips to train on."""
    test_clips: int = 8
    """Held-out clips: combinations of shape, colour and direction that training never shows."""
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
    """Scheduler steps a frame."""
    guidance_scale: float = 1.0
    """Towards the prompt; 1 = off."""
    image_guidance_scale: float = 1.0
    """Towards the image; 1 = off. With both off sampling takes a third of the time."""

    def __post_init__(self) -> None:
        least = {"seeds": 1, "train_clips": 1, "test_clips": 1, "resolution": 1, "steps": 1, "batch_size": 1}
        for name, smallest in (least | {"frames": 2, "sampler_steps": 1}).items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name}: expected at least {smallest}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate: expected a number > 0, got {self.learning_rate}")
        if not self.forms or len(set(self.forms)) < len(self.forms):
            raise InputError(f"forms: expected one at least, and none twice, got {' '.join(self.forms) or 'none'}")


# What may change when a demo goes on: it leaves the clips and the trained models as they are.
FREE = {"output", "forms", "seeds", "sampler_steps", "guidance_scale", "image_guidance_scale"}


def run(arguments: Sequence[str]) -> None:
    """Parse the options, make the demo and print where its page is."""
    options = tyro.cli(Options, prog="contrastive-i2v demo", args=arguments)
    transformers.utils.logging.disable_progress_bar()  # a bar for each loading and saving of a model
    print(f"\npage: {make_demo(options)}")


def make_demo(options: Options) -> Path:
    """Do what is not done yet; returns the page. Raises InputError where the folder holds a demo of other options."""
    began = time.perf_counter()
    base = load_base(options)
    check_folder(options)
    jobs = [(form, seed) for form in options.forms for seed in range(options.seeds)]
    stage = _stages(len(jobs) + 3)

    stage("clips")
    make_shapes(options.output / "clips", shapes_config(options))

    runs: dict[str, list[TrainConfig]] = {form: [] for form in options.forms}
    for form, seed in jobs:
        stage(f"training: {form}" + f", seed {seed}" * (options.seeds > 1))
        runs[form].append(train(run_config(options, form, seed)))

    stage("rollouts")
    captions, truth, videos = roll_out_all(options, runs, base)

    stage("page")
    outcome = Outcome(options=options, runs=runs, captions=captions, truth=truth, videos=videos)
    numbers = json.dumps(results(outcome), indent=2) + "\n"
    write_whole(options.output / "results.json", lambda part: part.write_text(numbers, encoding="utf-8"))
    page = options.output / "index.html"
    html = build_page(build_report(outcome, seconds=time.perf_counter() - began))
    write_whole(page, lambda part: part.write_text(html, encoding="utf-8"))
    print("\n".join(["", format_table(outcome.measured), "", *outcome.verdict]))
    return page


def load_base(options: Options) -> InstructPix2Pix:
    """The model before fine-tuning. Raises InputError where it can't be had, or takes no images of this size."""
    base = InstructPix2Pix.from_pretrained(options.model, device=_device())
    if options.resolution % base.downscale:
        raise InputError(
            f"resolution: expected a multiple of {base.downscale}, the image pixels of one latent pixel of model "
            f"{options.model!r}, got {options.resolution}"
        )
    return base


def check_folder(options: Options) -> None:
    """Write the options to `output/demo.yaml`; InputError where the folder's clips or models were made with others."""
    saved = options.output / "demo.yaml"
    if saved.exists() and (changed := differences(load_config(Options, saved), options, free=FREE)):
        raise InputError(
            f"{options.output}: holds a demo of other options ({'; '.join(changed)}); give another --output, or "
            "delete that folder"
        )
    try:
        save_config(options, saved)
    except OSError as error:
        raise InputError(f"output: {options.output} can't be written ({error.strerror or error})") from error


def shapes_config(options: Options) -> ShapesConfig:
    """The demo's clips, long enough for its rollouts."""
    return ShapesConfig(
        train_clips=options.train_clips,
        test_clips=options.test_clips,
        size=options.resolution,
        frames=max(80, NATIVE_STEP * options.frames),
    )


def run_config(options: Options, form: str, seed: int) -> TrainConfig:
    """One training of the demo: the tiny recipe of a form, on the demo's clips."""
    config = recipes.tiny(recipes.recipe(form))
    output = options.output / "runs" / f"{form}-seed{seed}"
    return replace(
        config,
        output=output,
        resume=bool(list_checkpoints(output / "checkpoints")),
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


def train(config: TrainConfig) -> TrainConfig:
    """Train, or go on, or leave a finished run as it is; returns the config."""
    if is_trained(config):
        print(f"done before: {config.output / 'model'}")
    else:
        Trainer(config).run()
    return config


def roll_out_all(
    options: Options, runs: Mapping[str, Sequence[TrainConfig]], base: InstructPix2Pix
) -> tuple[list[str], Tensor, dict[str, list[Tensor]]]:
    """Captions and true videos `[N, F, 3, H, W]` of the held-out clips, and each method's videos, one tensor a seed.

    The methods are the forms, the model without fine-tuning, and the first frame repeated.
    """
    clips, _ = read_folder(options.output / "clips" / "test")
    pairs = next(iter(runs.values()))[0].data.pairs
    held_out = load_held_out(clips, base, resolution=options.resolution, frames=options.frames, pairs=pairs)
    sampling = PreviewConfig(
        steps=options.sampler_steps,
        guidance_scale=options.guidance_scale,
        image_guidance_scale=options.image_guidance_scale,
    )
    videos: dict[str, list[Tensor]] = {name: [] for name in (*runs, BASE)}
    jobs = [(name, seed) for name in videos for seed in range(options.seeds)]
    for name, seed in tqdm(jobs, desc="rollouts", unit="model"):
        model = base
        if name != BASE:
            model = InstructPix2Pix.from_pretrained(runs[name][seed].output / "model", device=_device())
        videos[name].append(roll_out(held_out, model, sampling, seed=seed))
    videos[STILL] = [held_out.pixels[:, :1].expand_as(held_out.pixels)] * options.seeds
    return held_out.captions, held_out.pixels, videos


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _stages(count: int) -> Callable[[str], None]:
    """Prints `[1/5] what`, `[2/5] what`, ... as it is called."""
    numbers = iter(range(1, count + 1))

    def announce(what: str) -> None:
        print(f"[{next(numbers)}/{count}] {what}", flush=True)

    return announce
