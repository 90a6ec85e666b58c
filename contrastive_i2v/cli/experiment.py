"""`contrastive-i2v experiment`: every form of the loss from the same start, at equal compute, over several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.cli.experiment_report import Run, write_report
from contrastive_i2v.data.frames import FramePairConfig
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.data.video import write_whole
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.base import FlowExtractor, VideoExtractor
from contrastive_i2v.evaluation.extractors.loading import load_flow, load_video_extractor
from contrastive_i2v.evaluation.frames import frame_mse, motion
from contrastive_i2v.evaluation.temporal import is_dynamic
from contrastive_i2v.models import InstructPix2Pix, tiny
from contrastive_i2v.training.checkpoint import list_checkpoints
from contrastive_i2v.training.config import (
    DataConfig,
    LossConfig,
    OptimizerConfig,
    PreviewConfig,
    TrainConfig,
    differences,
    load_config,
    save_config,
)
from contrastive_i2v.training.forms import FORMS
from contrastive_i2v.training.preview import HeldOut, load_held_out, roll_out
from contrastive_i2v.training.trainer import Trainer, is_trained

FPS = 5.0  # of the model's frames
START_SEED = 1000  # of the weights and batches before the forms part
MEASURED = "measured.safetensors"
NATIVE_STEP = 5  # native frames of the 25 fps clips between two of the model's


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which form of the contrastive term helps? All train from the same weights on the same batches, and are compared.

    Seed s of every form shares its batches, noise and sampling noise with seed s of the others, so that differences
    are paired. The same command goes on where it was stopped, and adds forms and seeds to what is there.
    """

    output: Path = Path("runs/experiment")
    """Folder of everything; the table is table.md in it, the numbers results.json, the figure error.svg."""
    forms: tuple[str, ...] = ("baseline", "contrastive", "literal")
    """Which losses, by name; `--forms all` is every one there is. "baseline" is what the others are held against."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each form is trained once for each. Runs that the folder holds already stay in the table."""
    start_steps: int = 1300
    """Steps without any contrastive term, from random weights, before the forms part; 0 = they part at once."""
    steps: int = 400
    """Steps of each form."""
    batch_size: int = 32
    """Pairs a step; the negatives come from these."""
    learning_rate: float = 2e-3
    """Constant before the forms part, then falling to 0 along a cosine."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of the UNet's levels; the last one attends to the prompt. 1 M parameters."""
    condition_noise: float = 0.5
    """Of every form: noise on the conditioning latents in training, against drift in the rollouts."""
    train_clips: int = 240
    """Clips to train on."""
    test_clips: int = 64
    """Held-out clips: combinations of shape, colour and direction that training never shows."""
    test_seed: int = 101
    """Seed of the held-out clips: search with one, report with another."""
    frames: int = 16
    """Length of each rollout, the given first frame included; frames are 1/5 s apart."""
    sampler_steps: int = 8
    """DDIM steps a frame; no guidance."""
    quick: bool = False
    """A run of a minute that only shows that all works: two forms, one seed, few steps and clips."""

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "train_clips", "sampler_steps")
        if not 0 <= self.condition_noise < math.inf:
            raise InputError(f"condition_noise: expected a number >= 0, got {self.condition_noise}")
        least = dict.fromkeys(positive, 1) | {"start_steps": 0, "test_clips": 2, "frames": 2}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name}: expected at least {smallest}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate: expected a number > 0, got {self.learning_rate}")
        if not self.widths or any(width < 16 or width % 16 for width in self.widths):
            raise InputError(f"widths: expected multiples of 16, got {self.widths}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds: expected one at least, and none twice, got {self.seeds}")
        if unknown := [form for form in self.forms if form not in (*FORMS, "all")]:
            raise InputError(f"forms: {', '.join(unknown)} unknown; expected some of all, {', '.join(FORMS)}")
        if not self.forms or len(set(self.forms)) < len(self.forms):
            raise InputError(f"forms: expected one at least, and none twice, got {' '.join(self.forms) or 'none'}")

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
    "test_clips": 3,
    "frames": 4,
    "sampler_steps": 2,
}


def run(arguments: Sequence[str]) -> None:
    """Parse the options, run the experiment and print its table."""
    options = tyro.cli(Options, prog="contrastive-i2v experiment", args=arguments)
    transformers.utils.logging.disable_progress_bar()  # a bar for each loading and saving of a model
    print(make_experiment(replace(options, **QUICK) if options.quick else options))  # type: ignore[arg-type]


def make_experiment(options: Options) -> str:
    """Do what is not done yet; returns the table. InputError where the folder holds an experiment of other options."""
    video, flow = load_video_extractor(), load_flow()  # first, as they may be missing
    check_folder(options)
    make_shapes(options.output / "clips", ShapesConfig(train_clips=options.train_clips, test_clips=0, seed=12))
    held_out_config = ShapesConfig(train_clips=0, test_clips=options.test_clips, seed=options.test_seed)
    make_shapes(options.output / "held-out", replace(held_out_config, frames=max(80, NATIVE_STEP * options.frames)))
    held_out = load_truth(options)
    pixels = held_out.pixels
    truth = measured(options.output / "truth.safetensors", pixels, pixels, video, flow)
    still = measured(options.output / "still.safetensors", pixels[:, :1].expand_as(pixels), pixels, video, flow)
    model = start(options)
    jobs = [(form, seed) for seed in options.seeds for form in options.chosen]
    for number, (form, seed) in enumerate(jobs, start=1):
        config = form_config(options, form, seed, model)
        print(f"[{number}/{len(jobs)}] {form}, seed {seed}", flush=True)
        train(config)
        if not (config.output / MEASURED).exists():
            roll_out_and_measure(config, held_out, options, video, flow)
        table = write_report(read_runs(options.output), truth, still, asdict(options), options.output)
    return table


def read_runs(output: Path) -> list[Run]:
    """Every run of the folder that is measured, by form in the order of `FORMS` and by seed."""
    runs = []
    for form in FORMS:
        for file in sorted(output.glob(f"runs/{form}-seed*/{MEASURED}")):
            seed = int(file.parent.name.removeprefix(f"{form}-seed"))
            runs.append(Run(form=form, seed=seed, numbers=read(file)))
    return runs


def check_folder(options: Options) -> None:
    """Write the options to `output/experiment.yaml`; InputError where the folder was made with others."""
    saved = options.output / "experiment.yaml"
    if saved.exists() and (changed := differences(load_config(Options, saved), options, free=FREE)):
        raise InputError(
            f"{options.output}: holds an experiment of other options ({'; '.join(changed)}); give another --output"
        )
    save_config(options, saved)


def start(options: Options) -> Path:
    """The weights that every form begins with: a pipeline folder, made where it is not there yet."""
    torch.manual_seed(START_SEED)
    base = InstructPix2Pix.from_pretrained("tiny")
    attention = [False] * (len(options.widths) - 1) + [True]
    model = InstructPix2Pix(
        base.vae, base.text_encoder, base.tokenizer, tiny.build_unet(options.widths, attention), base.scheduler
    )
    if options.start_steps == 0:
        folder = options.output / "runs" / "start" / "model"
        if not (folder / "model_index.json").exists():
            model.save_pretrained(folder)
        return folder
    config = train_config(options, "start", START_SEED, LossConfig(target_weight=0.0))
    optimizer = replace(config.optimizer, schedule="constant", warmup_steps=min(50, options.start_steps))
    return train(replace(config, steps=options.start_steps, ema_decay=0.0, optimizer=optimizer), model)


def form_config(options: Options, form: str, seed: int, model: Path) -> TrainConfig:
    """One run: the form's loss, from the seed's start."""
    config = train_config(options, f"{form}-seed{seed}", seed, FORMS[form].loss)
    noise = FORMS[form].condition_noise
    return replace(config, model=str(model), condition_noise=options.condition_noise if noise is None else noise)


def train_config(options: Options, name: str, seed: int, loss: LossConfig) -> TrainConfig:
    """What all trainings share: next-frame pairs of the clips, a moving average, no previews."""
    output = options.output / "runs" / name
    return TrainConfig(
        output=output,
        resume=bool(list_checkpoints(output / "checkpoints")),
        model="(built by experiment)",
        steps=options.steps,
        batch_size=options.batch_size,
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
            pairs=FramePairConfig(offset_std=0.0, pairs_per_clip=30),
        ),
        loss=loss,
        optimizer=OptimizerConfig(learning_rate=options.learning_rate, betas=(0.9, 0.99), warmup_steps=20),
        preview=PreviewConfig(every=0),
    )


def train(config: TrainConfig, model: InstructPix2Pix | None = None) -> Path:
    """Train, or go on, or leave a finished run as it is; returns the model's folder."""
    if is_trained(config):
        return config.output / "model"
    return Trainer(config, model).run()


def load_truth(options: Options) -> HeldOut:
    """The held-out clips: captions, true frames, first latents."""
    clips, _ = read_folder(options.output / "held-out" / "test")
    base = InstructPix2Pix.from_pretrained("tiny")
    pairs = FramePairConfig(offset_std=0.0)
    return load_held_out(clips, base, resolution=tiny.RESOLUTION, frames=options.frames, pairs=pairs)


def roll_out_and_measure(
    config: TrainConfig, held_out: HeldOut, options: Options, video: VideoExtractor, flow: FlowExtractor
) -> dict[str, Tensor]:
    """Generate a run's videos from the held-out first frames; the numbers are kept, the videos are not."""
    model = InstructPix2Pix.from_pretrained(str(config.output / "model"))
    sampling = PreviewConfig(steps=options.sampler_steps, guidance_scale=1.0, image_guidance_scale=1.0)
    count = len(held_out.captions)
    parts = []
    for first in tqdm(range(0, count, 16), desc="rollouts", unit="batch"):
        rows = slice(first, first + 16)
        some = HeldOut(
            held_out.captions[rows], held_out.pixels[rows], held_out.first_latents[rows], held_out.prompt_embeds[rows]
        )
        parts.append(roll_out(some, model, sampling, seed=config.seed * count + first))
    return measured(config.output / MEASURED, torch.cat(parts), held_out.pixels, video, flow)


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    tensors: dict[str, Tensor] = load_file(file)
    return tensors


def measured(
    file: Path, videos: Tensor, truth: Tensor, video: VideoExtractor, flow: FlowExtractor
) -> dict[str, Tensor]:
    """The numbers of N videos `[N, F, 3, H, W]`, written to `file`: squared error by frame `[N, F]`, mean absolute
    change between frames `[N]`, whether each is dynamic `[N]`, features `[N, d]`."""
    if file.exists():
        return read(file)
    numbers = {
        "errors": frame_mse(videos, truth),
        "motion": motion(videos),
        "dynamic": torch.tensor([float(is_dynamic(one, flow, FPS).dynamic) for one in videos]),
        "features": video(videos),
    }
    write_whole(file, lambda part: save_file(numbers, part))
    return numbers
