"""A tiny LTX-Video for clips of moving shapes: its autoencoder trained, its transformer and text encoder random.

`contrastive-i2v train --recipe tiny-ltx-base` writes it, in minutes; `--recipe tiny-ltx-video` trains its transformer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.models.ltx_video import PUBLISHED, LTXVideo, tiny_parts
from contrastive_i2v.models.video_transformer import tiny_tokenizer
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import DESCRIPTION
from contrastive_i2v.training.pretrain import load_frames, train_video_autoencoder

SIZE = 64
FRAMES = 9
"""Of a window, 0.2 s apart: three latents."""


@dataclass(frozen=True, kw_only=True)
class TinyLTXConfig:
    """Make a tiny LTX-Video for moving shapes; only its autoencoder is trained (some ten minutes on 2 cores)."""

    output: Path = Path("runs/tiny-ltx-base")
    """Folder of everything; `output/model` is the model."""
    clips: ShapesConfig = field(default_factory=lambda: ShapesConfig(train_clips=800, seed=1))
    """The clips it learns from."""
    steps: int = 2500
    """Of the autoencoder."""
    seed: int = 1


def make_tiny_ltx(config: TinyLTXConfig) -> Path:
    """Write the model, or go on with an interrupted training, or leave a finished one as it is; returns its folder."""
    folder = config.output / "model"
    if (folder / DESCRIPTION).exists():
        return folder
    make_shapes(config.output / "clips", config.clips)
    clips, _ = read_folder(config.output / "clips" / "train")
    frames, _ = load_frames(clips, per_clip=FRAMES, step=5, size=SIZE)
    torch.manual_seed(config.seed)
    tokenizer = tiny_tokenizer(clip.caption for clip in clips)
    parts = tiny_parts(tokenizer=tokenizer, channels=32, width=16, heads=8, layers=6, text_width=64)
    mean, std = train_video_autoencoder(
        parts.vae, frames, folder=config.output / "stage", steps=config.steps, batch_size=8, seed=config.seed
    )
    parts.vae.latents_mean.copy_(mean)
    parts.vae.latents_std.copy_(std)
    system = LTXVideo(parts, FlowMatchEulerDiscreteScheduler(), replace(PUBLISHED, frames=FRAMES, text_length=32))
    system.size, system.fps = (SIZE, SIZE), 5.0
    system.sampler = Sampler(steps=8, guidance_scale=1.0, image_guidance_scale=1.0)
    system.save(folder)
    return folder
