"""`contrastive-i2v encode`: fill the latent cache ahead of training, say on a machine that has the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import tyro

from contrastive_i2v.data.latents import encode_clips, report_skipped
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.models import InstructPix2Pix
from contrastive_i2v.training.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Encode the latents and prompt embeddings that training with the same data options and seed will read."""

    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """"tiny", a diffusers folder, or a hub id: its VAE and text encoder are used."""
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    """The training run's seed: it decides which frames make pairs."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and encode."""
    options = tyro.cli(Options, prog="contrastive-i2v encode", args=arguments)
    clips, uncaptioned = read_folder(options.data.path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = InstructPix2Pix.from_pretrained(options.model, device=device)
    dataset, skipped = encode_clips(
        clips,
        model,
        cache_dir=options.data.cache_dir.expanduser(),
        resolution=options.data.resolution,
        pairs=options.data.pairs,
        seed=options.seed,
    )
    if left_out := report_skipped([*uncaptioned, *skipped]):
        print(left_out)
    print(f"{len(dataset)} pairs of {len(dataset.clips)} clips in {options.data.cache_dir}")
