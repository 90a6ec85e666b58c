"""Decode just the frames asked for, and write videos, GIFs and strips.

PyAV reads and writes; with CI2V_DECODER=decord in the environment decord reads what it can, and PyAV the rest
(contrastive_i2v.data.decoding). Frames are uint8 `[F, 3, H, W]`; models see float `[F, 3, H, W]` in [-1, 1].
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.data import decoding
from contrastive_i2v.data.decoding import Section
from contrastive_i2v.data.decoding import VideoInfo as VideoInfo
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import write_whole
from contrastive_i2v.system import Size

T = TypeVar("T")

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
RATES = (Fraction(1, 100), Fraction(10**6))
"""The lowest and highest frames a second that are written; mp4 and gif have no room for others."""


class VideoError(InputError):
    """A video file that can't be opened or decoded; the message names the file."""


def probe(path: Path, section: Section | None = None) -> VideoInfo:
    """Frame count, rate and upright size of a video. Raises VideoError naming the file.

    Args:
        section: the video is these bytes of the file, which PyAV alone reads; None = all of it.
    """
    with VideoReader(path, section) as video:
        return video.probe()


def read_frames(path: Path, indices: Sequence[int], section: Section | None = None) -> Tensor:
    """Frames `indices` of a video, upright, at its own size: uint8 `[F, 3, H, W]`. Raises VideoError naming it."""
    with VideoReader(path, section) as video:
        return video.read(indices)


class VideoReader:
    """`probe` and `read_frames` of one video, by one opening where PyAV reads it. Opened at the first call."""

    def __init__(self, path: Path, section: Section | None = None) -> None:
        self.path, self.section = path, section
        self._video: decoding.PyavVideo | None = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.__exit__()
        self._video = None

    def probe(self) -> VideoInfo:
        """Raises VideoError naming the file."""
        return self._ask(lambda video: video.info(), decoding.probe_decord)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Frames, uint8 `[F, 3, H, W]`. Raises VideoError naming the file."""
        if not indices or min(indices) < 0:
            raise ValueError(f"indices: expected at least one frame index >= 0, got {list(indices)}")
        return self._ask(lambda video: video.read(indices), partial(decoding.read_decord, indices=indices))

    def _ask(self, pyav: Callable[[decoding.PyavVideo], T], decord: Callable[[Path], T]) -> T:
        def ask(path: Path) -> T:
            if self._video is None:
                self._video = decoding.PyavVideo(path, self.section).__enter__()
            return pyav(self._video)

        readers = {"pyav": ask} if self.section is not None else {"pyav": ask, "decord": decord}
        try:
            return _first_that_reads(self.path, readers)
        except VideoError:
            self.__exit__()
            raise


def resize_frames(frames: Tensor, size: int | Size) -> Tensor:
    """Centre crop and resize, never squashed: uint8 `[F, 3, H, W]` -> float32 `[F, 3, height, width]` in [-1, 1].

    Args:
        size: side of a square, or (height, width), in pixels.
    """
    height, width = as_size(size)
    full_height, full_width = frames.shape[-2:]
    crop_height = min(full_height, round(full_width * height / width))
    crop_width = min(full_width, round(full_height * width / height))
    top, left = (full_height - crop_height) // 2, (full_width - crop_width) // 2
    pixels = frames[..., top : top + crop_height, left : left + crop_width].float() / 127.5 - 1
    if (crop_height, crop_width) == (height, width):
        return pixels
    pixels = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return pixels.clamp(-1, 1)


def as_size(size: int | Size) -> Size:
    """(height, width) of a size that may be a square's side."""
    return (size, size) if isinstance(size, int) else size


def to_uint8(pixels: Tensor) -> Tensor:
    """Float pixels in [-1, 1] -> uint8, rounded; values outside are clipped."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def check_rate(name: str, fps: float) -> None:
    """Raises InputError for frames a second, an option's, beyond RATES."""
    if not RATES[0] <= fps <= RATES[1]:
        least, most = map(float, RATES)
        raise InputError(f"{name}: expected {least:g} to {most:g} frames a second, which files can say, got {fps}")


def write_video(path: Path, frames: Tensor, fps: float, *, crf: int = 14) -> None:
    """Write uint8 `[F, 3, H, W]` as H.264 that browsers play; odd sizes are padded by one edge pixel.

    The file appears whole or not at all: it is written beside its name and renamed.
    """
    import av

    frames = F.pad(frames.float(), (0, frames.shape[-1] % 2, 0, frames.shape[-2] % 2), mode="replicate").byte()
    # the edit list counts in milliseconds by default, and shorter frames would fall outside it: players would drop them
    options = {"movie_timescale": "1000000"} if fps > 100 else {}

    def write(part: Path) -> None:
        with av.open(str(part), "w", format="mp4", options=options) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = frames.shape[-2:]
            stream.pix_fmt = "yuv420p"
            # x264's macroblock tree decides differently from run to run here, and the same frames should give one file
            stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
            stream.thread_count = 1
            for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    write_whole(path, write)


def write_gif(path: Path, frames: Tensor, fps: float) -> None:
    """Write uint8 `[F, 3, H, W]` as a looping GIF."""
    images = _pil_images(frames)

    def write(part: Path) -> None:
        images[0].save(part, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)

    write_whole(path, write)


def write_strip(path: Path, frames: Tensor) -> None:
    """Write uint8 `[F, 3, H, W]` as one PNG, frames side by side."""
    strip = frames.permute(1, 2, 0, 3).flatten(2)  # [3, H, F * W]
    write_whole(path, lambda part: _pil_images(strip[None])[0].save(part, format="PNG"))


def _pil_images(frames: Tensor) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(f) for f in frames.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def _first_that_reads(path: Path, readers: Mapping[str, Callable[[Path], T]]) -> T:
    """What the decoder asked for says of the file, or PyAV where that one can't read it."""
    chosen = os.environ.get("CI2V_DECODER") or "pyav"
    if chosen not in ("pyav", "decord"):
        raise InputError(f"CI2V_DECODER={chosen}: expected pyav or decord")
    decoding.decode_seconds()  # a bad limit is no fault of the file
    if not path.is_file():
        raise VideoError(f"{path}: no such file; expected a video")
    reasons = []
    for name in dict.fromkeys((chosen, "pyav")) if chosen in readers else readers:
        try:
            return readers[name](path)
        except ImportError as error:
            reasons.append(f"{error.name} is not installed")
        except TimeoutError as error:
            raise VideoError(f"{path}: {one_line(error)}") from error
        except Exception as error:  # decoders raise their own types, and RuntimeError, IndexError, OSError
            reasons.append(one_line(error))
    raise VideoError(f"{path}: can't be decoded, the file is corrupt or not a video ({'; '.join(reasons)})")
