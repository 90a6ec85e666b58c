"""A clip's frames and the files behind them, whatever holds them: a video file, one in a tar, or images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from contrastive_i2v.data.images import read_image
from contrastive_i2v.data.parquet import read_cell
from contrastive_i2v.data.types import Clip, Images, ParquetRow, TarMember
from contrastive_i2v.data.video import VideoError, VideoInfo, VideoReader
from contrastive_i2v.errors import InputError
from contrastive_i2v.files import file_hash

T = TypeVar("T")


def probe_clip(clip: Clip) -> VideoInfo:
    """Frame count, rate and upright size of a clip's video. Raises VideoError naming it."""
    with ClipReader(clip) as video:
        return video.probe()


def read_clip(clip: Clip, indices: Sequence[int]) -> Tensor:
    """Native frames of a clip's video, upright, at its own size: uint8 `[F, 3, H, W]`. Raises VideoError naming it."""
    with ClipReader(clip) as video:
        return video.read(indices)


class ClipReader:
    """`probe_clip` and `read_clip` of one clip, a video opened once for both."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        section = _section(clip.part) if isinstance(clip.part, TarMember) else None
        is_video = clip.part is None or section is not None
        self._video = VideoReader(clip.path, section) if is_video else None

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.__exit__()

    def probe(self) -> VideoInfo:
        """Raises VideoError naming the clip."""
        if self._video is not None:
            return self._named(self._video.probe)
        height, width = _image(self.clip, 0).shape[-2:]
        if isinstance(self.clip.part, Images):
            return VideoInfo(len(self.clip.part.names), self.clip.part.fps, height, width)
        assert isinstance(self.clip.part, ParquetRow)
        return VideoInfo(len(self.clip.part.columns), 1.0, height, width)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Native frames, uint8 `[F, 3, H, W]`. Raises VideoError naming the clip."""
        if self._video is not None:
            return self._named(partial(self._video.read, indices))
        images = [_image(self.clip, index) for index in indices]
        if len({image.shape for image in images}) > 1:
            sizes = " and ".join(sorted({f"{image.shape[-1]}x{image.shape[-2]}" for image in images}))
            raise VideoError(f"{self.clip.where}: its images are of {sizes} pixels; expected one size")
        return torch.cat(images)

    def _named(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except VideoError as error:
            if self.clip.part is None:
                raise
            reason = str(error).removeprefix(f"{self.clip.path}: ")
            raise VideoError(f"{self.clip.where}: {reason}") from error


def stamp_clip(clip: Clip) -> list[object]:
    """Place, sizes and times of a clip's files, and the part of them that it is: it changes where a file does.

    Raises VideoError for a file that isn't there.
    """
    place = os.path.abspath(clip.path)
    try:
        stats = [file.stat() for file in _files(clip)]
    except OSError as error:
        raise VideoError(f"{clip.where}: can't be read ({error.strerror})") from error
    if clip.part is None:
        return [place, stats[0].st_size, stats[0].st_mtime_ns]
    return [place, [stat.st_size for stat in stats], [stat.st_mtime_ns for stat in stats], asdict(clip.part)]


def hash_clip(clip: Clip) -> str:
    """sha256 of the bytes that hold a clip's frames. Raises InputError naming the file."""
    if isinstance(clip.part, TarMember):
        total = hashlib.sha256()
        left = clip.part.size
        try:
            with clip.path.open("rb") as file:
                file.seek(clip.part.offset)
                while left and (block := file.read(min(left, 1 << 22))):
                    total.update(block)
                    left -= len(block)
        except OSError as error:
            raise InputError(f"{clip.path}: can't be read ({error.strerror})") from error
        return total.hexdigest()
    if isinstance(clip.part, ParquetRow):
        cells = [read_cell(clip.path, clip.part, column) for column in clip.part.columns]
        return hashlib.sha256(b"".join(hashlib.sha256(cell).digest() for cell in cells)).hexdigest()
    return file_hash(*_files(clip))


def _files(clip: Clip) -> list[Path]:
    return [clip.path / name for name in clip.part.names] if isinstance(clip.part, Images) else [clip.path]


def _section(part: TarMember) -> tuple[int, int]:
    return part.offset, part.offset + part.size


def _image(clip: Clip, index: int) -> Tensor:
    """One image of a clip, uint8 `[1, 3, H, W]`."""
    assert isinstance(clip.part, (Images, ParquetRow))
    try:
        if isinstance(clip.part, Images):
            return read_image(clip.path / clip.part.names[index])
        column = clip.part.columns[index]
        return read_image(clip.where / column, read_cell(clip.path, clip.part, column))
    except IndexError as error:
        raise VideoError(f"{clip.where}: has no frame {index}") from error
    except InputError as error:
        raise VideoError(str(error)) from error
