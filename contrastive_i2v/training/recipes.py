"""Named starting points: each function returns a config that the command line then overrides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.training.config import DataConfig, LossConfig, OptimizerConfig, PreviewConfig, TrainConfig


def contrastive() -> TrainConfig:
    """The default: target bank alone, cosine, temperature 0.07, gated by alphas_cumprod."""
    return TrainConfig()


def baseline() -> TrainConfig:
    """No contrastive term: what every comparison is against."""
    return TrainConfig(output=Path("runs/baseline"), loss=LossConfig(target_weight=0.0))


def literal() -> TrainConfig:
    """The published form: dot products, temperature 1, both banks at 1 / latent elements, every timestep."""
    loss = LossConfig(target_weight=None, input_weight=None, temperature=1.0, normalize=False, gate="none")
    return TrainConfig(output=Path("runs/literal"), loss=loss)


def tiny(config: TrainConfig) -> TrainConfig:
    """Scale a recipe to the packaged tiny model and 64x64 clips on a CPU."""
    return replace(
        config,
        model="tiny",
        steps=200,
        checkpoint_every=100,
        ema_decay=0.98,
        data=DataConfig(resolution=64, frames=FramesConfig(offset_std=0.0, windows_per_clip=8)),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=20),
        preview=PreviewConfig(every=100),
    )
