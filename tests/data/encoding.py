"""Small videos of noise, and the toy system's encodings of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from toy import Toy

from contrastive_i2v.data.examples import ExampleDataset, encode_clips
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.data.video import read_frames, resize_frames, write_video

FRAMES = FramesConfig(windows_per_clip=2)


def write_noise(path: Path, frames: int = 60, seed: int = 0) -> Path:
    noise = torch.rand(frames, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    write_video(path, (F.interpolate(noise, scale_factor=8) * 255).byte(), 25.0)
    return path


def encode(
    clips: list[Clip],
    system: Toy,
    cache: Path,
    *,
    resolution: int | tuple[int, int] = 16,
    frames: FramesConfig = FRAMES,
    seed: int = 0,
    progress: bool = False,
) -> tuple[ExampleDataset, list[Skipped]]:
    options = {"resolution": resolution, "frames": frames, "seed": seed, "progress": progress}
    return encode_clips(clips, system, cache_dir=cache, **options)


def encoded(clip: Clip, frames: Sequence[int], size: int | tuple[int, int] = 16, temporal_downscale: int = 1) -> Tensor:
    """What the toy's codec makes of native frames that belong together, `[f, 6, h, w]`."""
    codec = Toy().codec
    codec.temporal_downscale = temporal_downscale
    return codec.encode(resize_frames(read_frames(clip.path, frames), size)[None])[0]


def files_in(cache: Path) -> dict[Path, int]:
    """Time of last change of every file."""
    return {f: f.stat().st_mtime_ns for f in cache.rglob("*") if f.is_file()}
