"""A tiny text-to-image base, trained from nothing on the frames of captioned clips: where image-to-video training
starts in Stable Diffusion's world, its UNet not knowing a conditioning image yet.

The autoencoder and the text encoder are the packaged model's. The UNet learns frames from captions by the noise loss
alone, as the image task of Emu Video has it. The result is a Stable Diffusion 1.x folder, which InstructPix2Pix grows
to 8 input channels, the new ones with weights of zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.errors import check_fields
from contrastive_i2v.models import load_system, tiny
from contrastive_i2v.models.emu_video import PUBLISHED, EmuVideo, temporal_layers
from contrastive_i2v.models.stable_diffusion import Parts, StableDiffusion, keep_noisy_inputs
from contrastive_i2v.training.config import DataConfig, LossConfig, OptimizerConfig, PreviewConfig, TrainConfig
from contrastive_i2v.training.trainer import finish


@dataclass(frozen=True, kw_only=True)
class TextToImageConfig:
    """Train a tiny text-to-image model from nothing (some minutes on a core)."""

    output: Path = Path("runs/tiny-text-to-image")
    """Folder of everything the recipe writes; `output/model` is the model."""
    data: Path = Path("clips/train")
    """Folder of captioned clips, whose frames it learns from."""
    cache_dir: Path = Path("~/.cache/contrastive_i2v/latents")
    """Latents and prompt embeddings, encoded once; safe to delete."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each level of the UNet, multiples of 16; the last one attends to the prompt. Default: 1 M
    parameters."""
    steps: int = 1300
    batch_size: int = 32
    learning_rate: float = 1e-3
    frames_per_clip: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, {"steps": 1, "batch_size": 1, "frames_per_clip": 1}, positive=("learning_rate",))


def train_text_to_image(config: TextToImageConfig) -> Path:
    """Train, or go on with what was interrupted; returns the model's folder."""
    run = run_config(config)
    trained = load_system(finish(run, untrained(config)), device="cpu")
    assert isinstance(trained, EmuVideo)
    for module in (trained.vae, trained.unet):
        module.register_to_config(_name_or_path="contrastive_i2v tiny-text-to-image")  # else a path of this machine
    folder = config.output / "model"
    StableDiffusion.save_weights(trained, folder)  # its image model alone: no temporal layers, no system.json
    return folder


def untrained(config: TextToImageConfig) -> EmuVideo:
    """The packaged model's parts around a random UNet that takes noisy latents alone."""
    torch.manual_seed(config.seed)
    attention = [False] * (len(config.widths) - 1) + [True]
    start = tiny.untrained_system(config.widths, attention)
    keep_noisy_inputs("tiny", start.unet, int(start.vae.config.latent_channels))
    parts = Parts(start.vae, start.text_encoder, start.tokenizer, start.unet)
    system = EmuVideo(
        parts,
        temporal_layers(start.unet),
        start.scheduler,
        replace(PUBLISHED, zero_terminal_snr=False),  # the noise that InstructPix2Pix goes on with
    )
    system.sampler = tiny.SAMPLER
    return system


def run_config(config: TextToImageConfig) -> TrainConfig:
    """The training: single frames, the noise loss, no previews."""
    return TrainConfig(
        output=config.output / "unet",
        model="(built by tiny-text-to-image)",
        system=replace(PUBLISHED, zero_terminal_snr=False),
        steps=config.steps,
        batch_size=config.batch_size,
        ema_decay=0.99,
        seed=config.seed,
        data=DataConfig(
            path=config.data,
            cache_dir=config.cache_dir,
            resolution=tiny.RESOLUTION,
            frames=FramesConfig(offset_std=0.0, windows_per_clip=config.frames_per_clip),
        ),
        loss=LossConfig(target_weight=0.0),
        optimizer=OptimizerConfig(learning_rate=config.learning_rate, warmup_steps=min(50, config.steps)),
        preview=PreviewConfig(every=0),
    )
