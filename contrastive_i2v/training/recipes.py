"""Named starting points: configs that the command line then overrides, one for each of the main forms of the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.training.config import DataConfig, OptimizerConfig, PreviewConfig, TrainConfig
from contrastive_i2v.training.forms import FORMS


def recipe(form: str) -> TrainConfig:
    """The published size of training with a form of the loss."""
    return TrainConfig(output=Path("runs") / form, loss=FORMS[form].loss)


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


_BY_FORM = {form: recipe(form) for form in ("contrastive", "baseline", "literal")}
RECIPES = {**_BY_FORM, **{f"tiny-{form}": tiny(config) for form, config in _BY_FORM.items()}}
"""What `train --recipe NAME` starts from; the other forms are those of `experiment`."""
