"""Captioned clips of moving shapes, written as real H.264 files: a dataset that anybody can make offline.

One shape crosses a torus-shaped frame (what leaves on one side returns on the other) at constant velocity, so
the caption and the first frame determine every later frame: a prediction can be compared with the truth. Captions
without direction and speed leave the future open instead: a model's samples must choose. The background may scroll,
and a pillar may hide the shape for a while. The test split holds combinations of (shape, colour, direction) that the
training split never shows, though it shows each word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.data.video import write_video
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.files import parse_json, write_whole

Array = NDArray[np.float32]
Captions = Literal["full", "open", "same"]

COLOURS = {
    "red": (225, 45, 45),
    "green": (50, 190, 70),
    "blue": (55, 95, 235),
    "yellow": (245, 215, 50),
    "purple": (160, 60, 205),
    "orange": (245, 135, 30),
    "cyan": (50, 205, 215),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 0.4, "quickly": 1.0}
"""Pixels a frame at 25 frames a second and 64 pixels."""
_STAR_EDGE = np.arctan2(0.45 * np.sin(np.pi / 5), 1 - 0.45 * np.cos(np.pi / 5))  # inner radius 0.45
BACKGROUNDS = ("a plain wall", "stripes", "clouds")


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """What `make_shapes` writes; the same config always gives the same clips."""

    train_clips: int = 400
    """Clips in the training split."""
    test_clips: int = 32
    """Clips in the test split: combinations of shape, colour and direction unseen in training."""
    size: int = 64
    """Height and width in pixels."""
    frames: int = 80
    """Frames a clip, at 25 a second."""
    occlusion: float = 0.15
    """Share of clips in which the shape passes behind a pillar."""
    background_motion: float = 0.25
    """Share of clips whose background scrolls."""
    captions: Captions = "full"
    """full: all that a viewer must know. open: neither direction nor speed, so the future is open. same: one for all
    clips, so that captions can't tell clips apart. The videos are the same."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        least = {"train_clips": 0, "test_clips": 0, "size": 1, "frames": 1}
        check_fields(self, least, shares=("occlusion", "background_motion"))


@dataclass(frozen=True, kw_only=True)
class ShapeScene:
    """One clip's content; `caption` says all of it that a viewer must know."""

    shape: str
    colour: str
    direction: str
    speed: str
    background: str
    scrolls: bool
    occluded: bool
    seed: int

    @property
    def caption(self) -> str:
        return self.caption_of("full")

    def caption_of(self, captions: Captions) -> str:
        """The caption of a kind: "an orange star moves up slowly over stripes", "an orange star moves over stripes", or
        "a shape moves"."""
        if captions == "same":
            return "a shape moves"
        text = f"{'an' if self.colour == 'orange' else 'a'} {self.colour} {self.shape} moves"
        text += f" {self.direction} {self.speed}" if captions == "full" else ""
        text += f" over {'moving ' if self.scrolls else ''}{self.background}"
        return text + (" behind a pillar" if self.occluded else "")

    @property
    def held_out(self) -> bool:
        """Whether this combination belongs to the test split (one in five)."""
        indices = (
            SHAPES.index(self.shape),
            list(COLOURS).index(self.colour),
            list(DIRECTIONS).index(self.direction),
        )
        return sum(indices) % 5 == 0


def sample_scene(config: ShapesConfig, split: str, index: int) -> ShapeScene:
    """The scene number `index` of a split ("train" or "test")."""
    rng = np.random.default_rng([config.seed, split == "test", index])
    while True:
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        scene = ShapeScene(
            shape=SHAPES[rng.integers(len(SHAPES))],
            colour=list(COLOURS)[rng.integers(len(COLOURS))],
            direction=list(DIRECTIONS)[rng.integers(len(DIRECTIONS))],
            speed=list(SPEEDS)[rng.integers(len(SPEEDS))],
            background=background,
            scrolls=bool(rng.random() < config.background_motion) and background != BACKGROUNDS[0],
            occluded=bool(rng.random() < config.occlusion),
            seed=int(rng.integers(2**31)),
        )
        if scene.held_out == (split == "test"):
            return scene


def render_scene(scene: ShapeScene, *, frames: int, size: int) -> Tensor:
    """Draw a scene: uint8 `[frames, 3, size, size]`."""
    rng = np.random.default_rng(scene.seed)
    scale = size / 64
    time = np.arange(frames, dtype=np.float32)[:, None, None]  # [F, 1, 1]
    y, x = np.mgrid[:size, :size].astype(np.float32)  # [H, W]

    background = _background(scene, rng, size)  # [3, H, W]
    drift = (rng.choice([-1, 1]) * 0.2 * scale) if scene.scrolls else 0.0
    video = np.stack([_roll(background, drift * t) for t in range(frames)])  # [F, 3, H, W]

    radius = rng.uniform(9, 12) * scale
    centre_x, centre_y = rng.uniform(radius, size - radius, 2)  # the first frame shows the whole shape
    step_x, step_y = (SPEEDS[scene.speed] * scale * d for d in DIRECTIONS[scene.direction])
    alpha = _coverage(
        scene.shape,
        _wrap(x - centre_x - step_x * time, size) / radius,
        _wrap(y - centre_y - step_y * time, size) / radius,
        radius,
    )[:, None]  # [F, 1, H, W]
    colour = np.array(COLOURS[scene.colour], np.float32)[:, None, None]
    video = video * (1 - alpha) + colour * alpha

    if scene.occluded:
        left = rng.uniform(0.2, 0.6) * size
        pillar = np.clip(np.minimum(x - left, left + 0.2 * size - x) + 0.5, 0, 1)  # [H, W]
        video = video * (1 - pillar) + 105 * pillar
    return torch.from_numpy(video.round().clip(0, 255).astype(np.uint8))


def make_shapes(root: Path, config: ShapesConfig, *, progress: bool = True) -> None:
    """Write `root/train` and `root/test`: `00000.mp4` .. and `metadata.jsonl` with `file_name`, `text` and the
    scene's attributes. Clips that exist are kept, so an interrupted run goes on; another config's folder is an
    InputError."""
    # a recipe from before there were other captions doesn't say which
    claim_folder(root / "shapes.json", asdict(config), earlier={"captions": "full"})
    jobs = [("train", i) for i in range(config.train_clips)] + [("test", i) for i in range(config.test_clips)]
    rows: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    for split, index in tqdm(jobs, desc="clips", unit="clip", disable=not progress):
        scene = sample_scene(config, split, index)
        path = root / split / f"{index:05d}.mp4"
        if not path.exists():
            write_video(path, render_scene(scene, frames=config.frames, size=config.size), 25.0)
        rows[split].append({"file_name": path.name, "text": scene.caption_of(config.captions), **asdict(scene)})
    write_metadata(root, rows)


def claim_folder(recipe: Path, wanted: Mapping[str, object], *, earlier: Mapping[str, object]) -> None:
    """Write what a folder of generated clips is made from, where it doesn't say so yet.

    Args:
        recipe: the JSON file that says it.
        earlier: values of what it may lack, being older.

    Raises:
        InputError: it says something else.
    """
    try:
        same = not recipe.exists() or {**earlier, **parse_json(recipe.read_text(encoding="utf-8"))} == wanted
    except (OSError, ValueError, TypeError):
        same = False
    if not same:
        raise InputError(
            f"{recipe.parent}: holds clips of another config (see {recipe}); give another folder, or delete it"
        )
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(json.dumps(wanted, indent=2) + "\n")


def write_metadata(root: Path, rows: Mapping[str, Sequence[Mapping[str, object]]]) -> None:
    """Write `root/SPLIT/metadata.jsonl` for each split that has rows."""
    for split, lines in rows.items():
        if lines:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_whole(root / split / "metadata.jsonl", partial(Path.write_text, data=text))


def _wrap(distance: Array, size: int) -> Array:
    return (distance + size / 2) % size - size / 2


def _coverage(shape: str, x: Array, y: Array, radius: float) -> Array:
    """Antialiased coverage in [0, 1] of a shape of radius 1 at the points (x, y)."""
    r, angle = np.hypot(x, y), np.arctan2(x, -y)
    if shape == "circle":
        distance = r - 0.95
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.8
    elif shape == "triangle":
        distance = np.maximum(0.866 * np.abs(x) - 0.5 * y - 0.5, y - 0.5)
    elif shape == "star":
        fold = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)  # one half of one arm, its tip at angle 0
        distance = r * np.sin(fold + _STAR_EDGE) - np.sin(_STAR_EDGE)
    elif shape == "cross":
        distance = np.minimum(
            np.maximum(np.abs(x) - 0.3, np.abs(y) - 0.95), np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.3)
        )
    elif shape == "ring":
        distance = np.abs(r - 0.7) - 0.25
    else:
        raise ValueError(f"shape: expected one of {SHAPES}, got {shape!r}")
    return np.clip(0.5 - distance * radius, 0, 1).astype(np.float32)


def _background(scene: ShapeScene, rng: np.random.Generator, size: int) -> Array:
    """A muted, seamless `[3, H, W]` image."""
    base = rng.uniform(20, 110, 3)[:, None, None]
    if scene.background == "a plain wall":
        pattern = np.zeros((size, size))
    elif scene.background == "stripes":
        phase = 2 * np.pi * rng.integers(2, 5) * np.arange(size) / size
        pattern = np.tile(np.tanh(3 * np.sin(phase + rng.uniform(0, 6))), (size, 1))
    else:  # clouds: 1/f^1.5 noise, the spectrum of natural images
        frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) * size
        spectrum = np.fft.fft2(rng.standard_normal((size, size))) / np.maximum(frequency, 1) ** 1.5
        pattern = np.fft.ifft2(spectrum * (frequency > 0)).real
        pattern = pattern / pattern.std()
    tint = rng.uniform(10, 30, 3)[:, None, None]
    return np.clip(base + tint * pattern, 0, 255).astype(np.float32)


def _roll(image: Array, shift: float) -> Array:
    """Scroll an image sideways by a fraction of pixels, seamlessly."""
    whole = int(np.floor(shift))
    part = np.float32(shift - whole)
    scrolled: Array = np.roll(image, whole, -1) * (1 - part) + np.roll(image, whole + 1, -1) * part
    return scrolled
