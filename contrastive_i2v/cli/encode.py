"""`contrastive-i2v encode`: fill the latent cache ahead of training, say on a machine that has the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import tyro

from contrastive_i2v.data.examples import SKIPPED
from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.system import SystemConfig
from contrastive_i2v.training.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Encode the latents and prompt embeddings that training with the same data options and seed will read."""

    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """"tiny", a diffusers folder, or a hub id: its autoencoder and text encoder are used."""
    system: SystemConfig = field(default_factory=InstructPix2PixConfig)
    """What is made of the model: it decides which frames make a window."""
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    """The training run's seed: it decides which windows are drawn."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and encode."""
    options = tyro.cli(Options, prog="contrastive-i2v encode", args=arguments)
    from contrastive_i2v.training.batches import encode_dataset  # takes seconds

    data, system = options.data, load_system(options.model, options.system)
    dataset = encode_dataset(data, system, seed=options.seed, skipped_file=data.cache_dir.expanduser() / SKIPPED)
    print(f"{len(dataset)} windows of {len(dataset.clips)} clips in {data.cache_dir}")
