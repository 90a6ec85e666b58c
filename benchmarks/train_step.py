"""A training step beside one of diffusers' InstructPix2Pix example: `python -m benchmarks.train_step`.

Same videos, weights, batch size and precision, in turns. The example's step is written anew here from what it does:
both images of a pair go through the autoencoder and the prompt through the text encoder at every step, AdamW is torch's
as it comes. Ours reads latents and texts that were encoded once, and is the Trainer's own step, loading included. The
example's is also taken apart: the encoders, the UNet's forward and backward pass, the optimizer.

A figure is the median over the rounds; the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.video import read_frames, resize_frames
from contrastive_i2v.models import load_system
from contrastive_i2v.training.batches import build_loader
from contrastive_i2v.training.config import DataConfig, LossConfig, OptimizerConfig, PreviewConfig, TrainConfig
from contrastive_i2v.training.trainer import Trainer

SIZE = 64


class Example:
    """diffusers' example, a step at a time, on pixels that are decoded already."""

    def __init__(self, model: str, clips: Path, batch: int, precision: str) -> None:
        self.system: Any = load_system(model)
        self.unet = copy.deepcopy(self.system.network.unet).requires_grad_(True).train()
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-4, weight_decay=0.01)
        self.batch, self.precision = batch, precision
        found = read(clips).clips[:64]
        pairs = [resize_frames(read_frames(clip.path, [0, 5]), SIZE) for clip in found]
        self.pixels = torch.stack(pairs)  # [N, 2, 3, H, W]
        self.captions = [clip.caption for clip in found]
        self.seconds: dict[str, float] = {}

    def step(self) -> None:
        system, rows = self.system, torch.randint(len(self.pixels), (self.batch,))
        original, edited = self.pixels[rows].unbind(1)
        with self.timed("encoders"), torch.no_grad():
            scale = system.vae.config.scaling_factor
            latents = system.vae.encode(edited).latent_dist.sample() * scale
            image = system.vae.encode(original).latent_dist.mode()
            tokens = system.tokenizer(
                [self.captions[i] for i in rows],
                padding="max_length",
                truncation=True,
                max_length=system.tokenizer.model_max_length,
                return_tensors="pt",
            )
            embeds = system.text_encoder(tokens.input_ids)[0]
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (self.batch,))
        noisy = system.scheduler.add_noise(latents, noise, timesteps)
        target = system.scheduler.get_velocity(latents, noise, timesteps)
        with self.timed("UNet"), autocast(self.precision):
            prediction = self.unet(torch.cat([noisy, image], 1), timesteps, embeds, return_dict=False)[0]
            loss: Tensor = F.mse_loss(prediction.float(), target.float())
        with self.timed("UNet"):
            loss.backward()
        with self.timed("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - begin


def autocast(precision: str) -> Any:
    if precision == "no":
        return contextlib.nullcontext()
    return torch.autocast("cpu", torch.bfloat16)


def ours(folder: Path, model: str, clips: Path, batch: int, precision: Any, contrastive: bool) -> Callable[[], None]:
    trainer = Trainer(
        TrainConfig(
            output=folder / f"run-{contrastive}",
            model=model,
            steps=100_000,
            batch_size=batch,
            mixed_precision=precision,
            log_every=100_000,
            data=DataConfig(
                path=clips,
                cache_dir=folder / "latents",
                resolution=SIZE,
                frames=FramesConfig(offset_std=0.0, windows_per_clip=8),
            ),
            loss=LossConfig() if contrastive else LossConfig(target_weight=0.0),
            optimizer=OptimizerConfig(learning_rate=1e-4),
            preview=PreviewConfig(every=0),
        )
    )
    batches = iter(build_loader(trainer.dataset, trainer.config, trainer.accelerator, step=0))

    def step() -> None:
        trainer._train_step([next(batches)])
        trainer.state.step += 1

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="a JSON file of the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shapes(folder / "clips", ShapesConfig(train_clips=64, test_clips=0))
        clips = folder / "clips" / "train"
        example = Example(options.model, clips, options.batch_size, options.precision)
        arguments = (folder, options.model, clips, options.batch_size, options.precision)
        contenders = {
            "diffusers' example": example.step,
            "ours, no contrastive term": ours(*arguments, contrastive=False),
            "ours, contrastive": ours(*arguments, contrastive=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for step in contenders.values():
            step()
        example.seconds = {}
        for _ in range(options.rounds):
            for name, step in contenders.items():
                begin = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - begin)
    of_example = seconds["diffusers' example"]
    found = {
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "speed_up": {
            name: statistics.median(theirs / mine for theirs, mine in zip(of_example, values, strict=True))
            for name, values in seconds.items()
        },
        "parts_of_the_example": {name: 1000 * total / options.rounds for name, total in example.seconds.items()},
        "threads": torch.get_num_threads(),
        "precision": options.precision,
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
