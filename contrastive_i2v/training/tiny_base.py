"""The recipe of the tiny model that ships: clips, autoencoder, text encoder, then a UNet without contrastive term.

Each stage leaves its result in `output`; run again, finished stages are skipped and an unfinished one goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.models import tiny
from contrastive_i2v.models.instruct_pix2pix import PLAIN, InstructPix2Pix
from contrastive_i2v.models.stable_diffusion import Parts
from contrastive_i2v.training.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.pretrain import load_frames, train_autoencoder, train_text_encoder
from contrastive_i2v.training.trainer import finish


@dataclass(frozen=True, kw_only=True)
class TinyBaseConfig:
    """Train the packaged tiny model from nothing (about an hour on 2 cores)."""

    output: Path = Path("runs/tiny-base")
    """Folder of everything the recipe writes; `output/model` is the model."""
    clips: ShapesConfig = field(default_factory=lambda: ShapesConfig(train_clips=1600, seed=1))
    """The clips it learns from."""
    vae_steps: int = 2000
    text_steps: int = 800
    unet_steps: int = 3500
    second_steps: int = 2600
    """Of the UNet's second round, from the first one's averaged weights at half the learning rate."""
    seed: int = 1


def train_tiny_base(config: TinyBaseConfig) -> Path:
    """Run the recipe's stages; returns the model's folder (float16 safetensors with a card)."""
    root = config.output
    make_shapes(root / "clips", config.clips)
    clips, _ = read_folder(root / "clips" / "train")

    vae = _stage(root / "vae", AutoencoderKL)
    if vae is None:
        frames, _ = load_frames(clips, per_clip=2, step=40, size=tiny.RESOLUTION)
        vae = train_autoencoder(
            frames.flatten(0, 1), folder=root / "stages" / "vae", steps=config.vae_steps, batch_size=8, seed=config.seed
        )
        vae.save_pretrained(root / "vae")

    text_encoder = _stage(root / "text_encoder", CLIPTextModel)
    if text_encoder is None:
        pairs, seen = load_frames(clips, per_clip=2, step=5, size=tiny.RESOLUTION)
        tokenizer, text_encoder = train_text_encoder(
            pairs,
            [clip.caption for clip in seen],
            folder=root / "stages" / "text_encoder",
            steps=config.text_steps,
            batch_size=128,
            seed=config.seed,
        )
        tokenizer.save_pretrained(root / "tokenizer")
        text_encoder.save_pretrained(root / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer")

    torch.manual_seed(config.seed)
    parts = Parts(vae, text_encoder, tokenizer, tiny.build_unet())
    model = InstructPix2Pix(parts, tiny.build_scheduler(), sampler=tiny.SAMPLER)
    first, second = unet_config(config), second_config(config)
    finish(first, model)
    trained = InstructPix2Pix.load(str(finish(second)), second.system, PLAIN).to("cpu", torch.float16)
    trained.sampler, trained.size = model.sampler, model.size
    for module in (trained.vae, trained.unet):
        module.register_to_config(_name_or_path="contrastive_i2v tiny")  # else it is a path of this machine
    trained.save(root / "model")
    (root / "model" / "README.md").write_text(model_card(config, trained, read_log(second.output / "log.jsonl")))
    return root / "model"


def unet_config(config: TinyBaseConfig) -> TrainConfig:
    """The UNet stage: next-frame pairs, no contrastive term, averaged weights."""
    return TrainConfig(
        output=config.output / "unet",
        model="(built by tiny-base)",
        steps=config.unet_steps,
        batch_size=16,
        ema_decay=0.998,
        seed=config.seed,
        data=DataConfig(
            path=config.output / "clips" / "train",
            validation_path=config.output / "clips" / "test",
            cache_dir=config.output / "latents",
            resolution=tiny.RESOLUTION,
            frames=FramesConfig(offset_std=0.0, windows_per_clip=12),
        ),
        loss=LossConfig(target_weight=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100),
    )


def second_config(config: TinyBaseConfig) -> TrainConfig:
    """The UNet's second round: other batches."""
    first = unet_config(config)
    return replace(
        first,
        output=config.output / "unet-2",
        model=str(first.output / "model"),
        steps=config.second_steps,
        seed=config.seed + 1,
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=50),
    )


def model_card(config: TinyBaseConfig, model: InstructPix2Pix, log: list[dict[str, float]]) -> str:
    """The README.md beside the weights: data, recipe, measured figures, licence."""
    sizes = {
        name: sum(p.numel() for p in getattr(model, name).parameters()) / 1e6
        for name in ("vae", "text_encoder", "unet")
    }
    parts = ", ".join(f"{name} {size:.2f} M" for name, size in sizes.items())
    mse = [row["mse"] for row in log if "mse" in row][-20:]
    previews = [row for row in log if "preview/motion_ratio" in row][-1:]
    measured = [f"- mean v-prediction MSE of the last {len(mse)} log lines: {sum(mse) / len(mse):.4f}"]
    for row in previews:
        measured.append(
            f"- rollouts of held-out clips at step {row['step']}: motion {row['preview/motion_ratio']:.2f} of the "
            f"truth's, pixel MSE at the last of 8 frames {row['preview/last_frame_mse']:.4f} (pixels in [-1, 1])"
        )
    return CARD.format(
        parts=parts,
        train=config.clips.train_clips,
        test=config.clips.test_clips,
        clip_seed=config.clips.seed,
        vae_steps=config.vae_steps,
        text_steps=config.text_steps,
        unet_steps=config.unet_steps,
        second_steps=config.second_steps,
        seed=config.seed,
        measured="\n".join(measured),
    )


CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: image-to-video
---
# contrastive_i2v tiny

Stable Diffusion 1.x in miniature ({parts} parameters), in InstructPix2Pix form: it turns a 64x64 first frame and a
caption into the next frame, 0.2 s later. For trying the library on a CPU and for tests; it knows only moving shapes.

**Data.** {train} training and {test} held-out clips that the library draws itself (`contrastive-i2v shapes`, seed
{clip_seed}): one of 6 shapes in 8 colours moves in 4 directions at 2 speeds, over plain, striped or cloudy
backgrounds, some scrolling, some with a pillar in front. No outside data.

**Recipe.** `contrastive-i2v train --recipe tiny-base` (seed {seed}): autoencoder {vae_steps} steps, text encoder
{text_steps} steps of CLIP's objective against pairs of frames, UNet {unet_steps} and {second_steps}
steps of 16 pairs, v prediction, no contrastive term, moving average of the weights. Stored in float16.
The sampler is calibrated on the held-out clips (`calibration.json`).

**Measured by that run.**
{measured}

**Licence.** Apache-2.0, as the library.
"""


def _stage(folder: Path, kind: Any) -> Any:
    """What a finished stage left, or None."""
    return kind.from_pretrained(folder) if (folder / "config.json").exists() else None
