"""What an experiment is made of: clips to train on, to calibrate with and to report on, and the weights that all forms
begin with. Another start or kind of footage is a line in a table here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from contrastive_i2v.cli.trainings import clip_length, train
from contrastive_i2v.data.footage import FootageConfig, make_footage
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system, read_description, tiny
from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.models.loading import locate
from contrastive_i2v.system import DESCRIPTION, SystemConfig
from contrastive_i2v.training.config import LossConfig, TrainConfig
from contrastive_i2v.training.text_to_image import TextToImageConfig, train_text_to_image

SEED = 1000
"""Of the weights and batches before the forms part."""
TRAIN_SEED = 12
"""Of the clips that are trained on."""
Footage = Literal["shapes", "open", "same", "camera"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights that every form begins with, and how it usually goes on from them."""

    make: Callable[[TrainConfig, int, tuple[int, ...]], Path]
    """From a config of the form's trainings, steps and widths to a model's folder or name."""
    steps: int
    batch_size: int
    learning_rate: float
    system: SystemConfig = InstructPix2PixConfig()


def find_start(name: str) -> Start:
    """The start of this name, or that which goes on from a model's folder. Raises InputError for what is neither."""
    if name in STARTS:
        return STARTS[name]
    saved = read_description(locate(name)) if Path(name).expanduser().is_dir() else None
    if saved is None:
        raise InputError(f"start: expected one of {', '.join(STARTS)}, or a folder with {DESCRIPTION}, got {name!r}")
    system = type(saved.system)()  # its options are those of the folder
    return Start(make=lambda *_: Path(name), steps=300, batch_size=8, learning_rate=2e-4, system=system)


def _weak(config: TrainConfig, steps: int, widths: tuple[int, ...]) -> Path:
    """A small model trained from random weights without any contrastive term; 0 steps = random weights."""
    torch.manual_seed(SEED)
    attention = [False] * (len(widths) - 1) + [True]
    system = tiny.untrained_system(widths, attention)
    if steps == 0:
        folder = config.output / "model"
        if not (folder / DESCRIPTION).exists():
            system.save(folder)
        return folder
    optimizer = replace(config.optimizer, schedule="constant", warmup_steps=min(50, steps))
    loss = LossConfig(target_weight=0.0)
    return train(replace(config, loss=loss, seed=SEED, steps=steps, ema_decay=0.0, optimizer=optimizer), system)


def _packaged(config: TrainConfig, steps: int, widths: tuple[int, ...]) -> Path:
    """The tiny model that ships."""
    return Path("tiny")


def _text_to_image(config: TrainConfig, steps: int, widths: tuple[int, ...]) -> Path:
    """A text-to-image base of the same clips, grown to take an image by weights of zero."""
    folder = config.output / "model"
    if not (folder / DESCRIPTION).exists():
        base = TextToImageConfig(
            output=config.output / "base",
            data=config.data.path,
            cache_dir=config.data.cache_dir,
            widths=widths,
            steps=steps,
            seed=SEED,
        )
        system = load_system(train_text_to_image(base), InstructPix2PixConfig())
        system.sampler, system.size = tiny.SAMPLER, (tiny.RESOLUTION, tiny.RESOLUTION)
        system.save(folder)
    return folder


STARTS = {
    "weak": Start(make=_weak, steps=400, batch_size=32, learning_rate=2e-3),
    "packaged": Start(make=_packaged, steps=120, batch_size=16, learning_rate=2e-4),
    "text-to-image": Start(make=_text_to_image, steps=300, batch_size=32, learning_rate=1e-3),
}


def make_clips(root: Path, footage: Footage, *, train: int, validation: int, test: int, frames: int, seed: int) -> None:
    """Write `clips/train`, `validation/test` and `held-out/test` below `root`; what is there stays."""
    FOOTAGE[footage](root / "clips", train, 0, 80, TRAIN_SEED)
    if validation:
        FOOTAGE[footage](root / "validation", 0, validation, clip_length(frames), seed + 1)
    FOOTAGE[footage](root / "held-out", 0, test, clip_length(frames), seed)


def _shapes(captions: Literal["full", "open", "same"]) -> Callable[[Path, int, int, int, int], None]:
    def make(root: Path, train: int, test: int, frames: int, seed: int) -> None:
        make_shapes(root, ShapesConfig(train_clips=train, test_clips=test, frames=frames, captions=captions, seed=seed))

    return make


def _camera(root: Path, train: int, test: int, frames: int, seed: int) -> None:
    make_footage(root, FootageConfig(train_clips=train, test_clips=test, frames=frames, videos=False, seed=seed))


FOOTAGE: dict[Footage, Callable[[Path, int, int, int, int], None]] = {
    "shapes": _shapes("full"),
    "open": _shapes("open"),
    "same": _shapes("same"),
    "camera": _camera,
}
"""Kind -> a function that writes clips: folder, training clips, test clips, frames a clip, seed."""
