"""Trains the classifier of `shapes_reader.py` on clips that the library draws, and measures it on others.

A third of the clips went through an autoencoder and a half of each batch is blurred a little, so that it reads the
shape and not the traces of a codec.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from contrastive_i2v.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    ShapeScene,
    ShapesConfig,
    render_scene,
    sample_scene,
)
from contrastive_i2v.errors import check_fields
from contrastive_i2v.evaluation.extractors.shapes_reader import (
    FRAME_RATE,
    MOTIONS,
    SIZE,
    ShapesNetwork,
    ShapesReader,
)

Autoencode: TypeAlias = Callable[[Tensor], Tensor]
"""Frames `[N, 3, 64, 64]` in [-1, 1] to what an autoencoder makes of them."""
STEP = round(25 / FRAME_RATE)
"""Native frames between two that are looked at."""
FRAMES, PAIRS = 80, 4
TEST_CLIPS, TEST_FRAMES = 200, 16
HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True, kw_only=True)
class ShapesReaderConfig:
    """Train the classifier that reads shape, colour and direction off generated clips (minutes on one core)."""

    output: Path = Path("runs/shapes-reader")
    """Folder of model.safetensors (float16) and README.md."""
    clips: int = 2000
    """Clips it learns from, drawn with `seed`; a fifth of them of the test split's combinations."""
    steps: int = 800
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 11

    def __post_init__(self) -> None:
        check_fields(self, {"clips": 3, "steps": 1, "batch_size": 2}, positive=("learning_rate",))


def train_shapes_reader(config: ShapesReaderConfig, autoencode: Autoencode) -> Path:
    """Train, measure on clips of another seed, and write `output`; returns the weights' file."""
    pairs, labels = draw_pairs(config, autoencode)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = ShapesNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    for step in tqdm(range(config.steps), desc="shapes reader", unit="step"):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            warm = min(1, (step + 1) / 50)
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        rows = torch.randint(len(pairs), (config.batch_size,), generator=generator)
        frames, moves = degrade(pairs[rows], labels["motion"][rows], generator)
        shape, colour, motion = network(frames[:, 1], frames[:, 0])
        loss = F.cross_entropy(shape, labels["shape"][rows]) + F.cross_entropy(colour, labels["colour"][rows])
        loss = loss + F.cross_entropy(motion, moves)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    config.output.mkdir(parents=True, exist_ok=True)
    weights = config.output / "model.safetensors"
    state = network.state_dict()
    save_file({name: value.half().contiguous() for name, value in state.items() if value.is_floating_point()}, weights)
    count = sum(parameter.numel() for parameter in network.parameters())
    table = measure(ShapesReader(weights=weights), autoencode, TEST_CLIPS)
    (config.output / "README.md").write_text(_card(config, count, table), encoding="utf-8")
    return weights


def draw_pairs(config: ShapesReaderConfig, autoencode: Autoencode) -> tuple[Tensor, dict[str, Tensor]]:
    """Pairs of frames 1/5 s apart, uint8 `[N, 2, 3, 64, 64]`, and their indices into SHAPES, COLOURS, MOTIONS.

    Every third clip is autoencoded. Where a pair begins in its clip is drawn from the seed.
    """
    scenes = _scenes(config.seed, config.clips)
    generator = torch.Generator().manual_seed(config.seed)
    pairs = []
    for number, scene in enumerate(tqdm(scenes, desc="clips", unit="clip")):
        starts = torch.randint(FRAMES - STEP, (PAIRS,), generator=generator)
        video = render_scene(scene, frames=int(starts.max()) + STEP + 1, size=SIZE)
        frames = torch.stack([video[starts], video[starts + STEP]], dim=1)  # [4, 2, 3, 64, 64]
        if number % 3 == 0:
            frames = _bytes(autoencode(_pixels(frames).flatten(0, 1))).reshape(frames.shape)
        pairs.append(frames)
    labels = {name: value.repeat_interleave(PAIRS) for name, value in _labels(scenes).items()}
    return torch.cat(pairs), labels


def degrade(pairs: Tensor, motions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch as the network sees it: pairs `[B, 2, 3, H, W]` in [-1, 1], and their motions.

    One in ten has the same frame twice, which makes it "still". Both frames of a pair are rolled by as much, every
    second pair is blurred with a standard deviation of up to 1 pixel, and each frame has noise of its own, 0.02.
    """
    batch, side = len(pairs), pairs.shape[-1]
    frames, motions = _pixels(pairs), motions.clone()
    still = torch.rand(batch, generator=generator) < 0.1
    frames[still, 0] = frames[still, 1]
    motions[still] = MOTIONS.index("still")
    shifts = torch.randint(side, (batch, 2), generator=generator).tolist()
    frames = torch.stack([pair.roll(shift, (-2, -1)) for pair, shift in zip(frames, shifts, strict=True)])
    sigma = torch.rand(batch, generator=generator)
    sigma[torch.rand(batch, generator=generator) < 0.5] = 0
    offsets = torch.arange(-3.0, 4.0)
    kernel = torch.exp(-offsets.square() / (2 * sigma.clamp(min=0.05).square()[:, None]))  # [B, 7]
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    maps = frames.flatten(1, 2)  # [B, 6, H, W]
    for turned in (False, True):
        rows = maps.transpose(-1, -2) if turned else maps
        rows = F.pad(rows, (3, 3, 0, 0), mode="circular").unfold(-1, 7, 1)  # [B, 6, H, W, 7]
        rows = torch.einsum("bchwk,bk->bchw", rows, kernel)
        maps = rows.transpose(-1, -2) if turned else rows
    frames = maps.reshape(frames.shape)
    return frames + 0.02 * torch.randn(frames.shape, generator=generator), motions


def measure(reader: ShapesReader, autoencode: Autoencode, clips: int) -> dict[str, dict[str, float]]:
    """Share of frames read as they are, on clips of another seed: kind of clip -> reading -> share."""
    scenes = _scenes(HELD_OUT_SEED, clips)
    videos = torch.stack([render_scene(one, frames=STEP * (TEST_FRAMES - 1) + 1, size=SIZE)[::STEP] for one in scenes])
    pixels = _pixels(videos)  # [N, 16, 3, 64, 64]
    encoded = torch.stack([_pixels(_bytes(autoencode(video))) for video in pixels])
    labels = _labels(scenes)
    plain = torch.tensor([one.background == BACKGROUNDS[0] and not one.occluded for one in scenes])
    pillar = torch.tensor([one.occluded for one in scenes])
    table: dict[str, dict[str, float]] = {}
    for kind, given in (("as drawn", pixels), ("autoencoded", encoded)):
        right = {name: (found.argmax(dim=2) == labels[name][:, None]).double() for name, found in reader(given).items()}
        for of, kept in (("all clips", plain | True), ("plain walls, no pillar", plain), ("behind a pillar", pillar)):
            table[f"{of}, {kind}"] = {name: float(share[kept].mean()) for name, share in right.items()}
    return table


def _scenes(seed: int, count: int) -> list[ShapeScene]:
    config = ShapesConfig(seed=seed)
    return [sample_scene(config, "test" if number % 5 == 0 else "train", number) for number in range(count)]


def _labels(scenes: list[ShapeScene]) -> dict[str, Tensor]:
    colours = list(COLOURS)
    return {
        "shape": torch.tensor([SHAPES.index(one.shape) for one in scenes]),
        "colour": torch.tensor([colours.index(one.colour) for one in scenes]),
        "motion": torch.tensor([MOTIONS.index(one.direction) for one in scenes]),
    }


def _pixels(frames: Tensor) -> Tensor:
    return frames.float() / 127.5 - 1


def _bytes(frames: Tensor) -> Tensor:
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _card(config: ShapesReaderConfig, parameters: int, table: dict[str, dict[str, Any]]) -> str:
    rows = "\n".join(
        f"| {kind} | " + " | ".join(f"{100 * found[name]:.1f} %" for name in ("shape", "colour", "motion")) + " |"
        for kind, found in table.items()
    )
    return CARD.format(
        parameters=f"{parameters / 1e6:.2f}",
        clips=config.clips,
        seed=config.seed,
        steps=config.steps,
        batch=config.batch_size,
        test=TEST_CLIPS,
        frames=TEST_FRAMES,
        held_out=HELD_OUT_SEED,
        rows=rows,
    )


CARD = """---
license: apache-2.0
---
# contrastive_i2v shapes reader

Reads what a caption of the generated clips (`contrastive-i2v shapes`) says off 64x64 frames: one of 6 shapes and of 8
colours from a frame, and one of 4 directions, or "still", from two frames 1/5 s apart. {parameters} M parameters,
stored in float16. For judging generated videos of these clips; it knows nothing else, and on other footage its answers
mean nothing.

**Data.** {clips} clips that the library draws itself (seed {seed}), 4 pairs of frames each, the test split's
combinations of shape, colour and direction among them, so that a method isn't judged by what its judge has never seen.
Shapes that cross the border (the frame is a torus, and so is the network's padding) and shapes behind a pillar are
among them. Every third clip went through the packaged autoencoder; in training half of the pairs are blurred with a
standard deviation of up to 1 pixel, all are rolled and have noise of 0.02.

**Recipe.** `contrastive-i2v train --recipe shapes-reader`: {steps} steps of {batch} pairs, AdamW.

**Measured** on {test} other clips (seed {held_out}), {frames} frames each at 5 a second, no frame left out:

| clips | shape | colour | direction |
|---|---|---|---|
{rows}

**Licence.** Apache-2.0, as the library.
"""
