"""The two decoders behind `contrastive_i2v.data.video`: PyAV, which reads unless told otherwise, and decord.

Both give the same frames of the same indices, upright: as the display matrix of the file, which phones write, says.
A file can be anything, so the work is bounded: counts are checked before they are believed, and decoding stops after
`decode_seconds()`. decord ends the process on some files, so it is given only what PyAV has looked through.
"""

from __future__ import annotations

import math
import os
import struct
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.errors import InputError

DECODE_SECONDS = 300.0
"""How long one call may decode one file; the environment variable CI2V_DECODE_SECONDS goes before it."""
MAX_PIXELS = 2**27
"""Of a frame; 8K has a quarter of it. A header that claims more is taken for damage, before its memory is taken."""
SEEK_PIXELS = 2**21
"""Pixels of the frames between two wanted ones from which on it is looked whether a keyframe there saves decoding."""
SEEK_FRAMES = 8
"""Frames that a seek must save: it throws away those that the decoder holds back to put them in order."""
THREADED_PIXELS = 2**18
"""Of a frame, from which on several threads convert it to RGB: at 64x64 they take longer than the work."""
TIMED_FORMATS = ("mov", "matroska")
"""FFmpeg's names for MP4 and QuickTime, and for Matroska and WebM. Others, as AVI, have no times of presentation."""

CONTAINERS = "mov,matroska,avi,asf,flv,ogg,nut,mxf,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,dv,gif,yuv4mpegpipe"
"""FFmpeg's names of what is opened. It goes by what a file holds, and would follow a script (concat, hls, dash, sdp) to
other files or into the network."""

Turn = tuple[bool, bool, bool]
"""How a stored frame becomes upright: rows and columns swapped, then columns mirrored, then rows mirrored."""
NO_TURN: Turn = (False, False, False)
Section = tuple[int, int]
"""Bytes of a file, from the first number up to the second."""


@dataclass(frozen=True)
class VideoInfo:
    frames: int
    """By the container's count, which some files overstate by one."""
    fps: float
    height: int
    """Of an upright frame, in pixels."""
    width: int

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def decode_seconds() -> float:
    """The time limit of one call, in seconds. Raises InputError for a bad CI2V_DECODE_SECONDS."""
    text = os.environ.get("CI2V_DECODE_SECONDS", "")
    if not text:
        return DECODE_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InputError(f"CI2V_DECODE_SECONDS={text}: expected a number of seconds > 0")
    return seconds


def probe_pyav(path: Path, section: Section | None = None) -> VideoInfo:
    """Count, rate and size. Decodes the first frame, which alone says whether the video is stored turned.

    Args:
        section: the video is these bytes of the file; None = all of it.
    """
    with PyavVideo(path, section) as video:
        return video.info()


def read_pyav(path: Path, indices: Sequence[int], section: Section | None = None) -> Tensor:
    """Frames of a video in presentation order, uint8 `[F, 3, H, W]`. Raises IndexError for one that isn't there."""
    with PyavVideo(path, section) as video:
        return video.read(indices)


def probe_decord(path: Path) -> VideoInfo:
    """What `probe_pyav` finds, with decord's own count and rate."""
    reader, info = _open_checked(path)
    return VideoInfo(len(reader), float(reader.get_avg_fps()), info.height, info.width)


def read_decord(path: Path, indices: Sequence[int]) -> Tensor:
    """Frames of a video in presentation order, uint8 `[F, 3, H, W]`."""
    reader, _ = _open_checked(path)
    batch = reader.get_batch(list(indices)).asnumpy()  # [F, H, W, 3]
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()


def open_decord(path: Path) -> Any:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    return decord.VideoReader(str(path), num_threads=1)


def _open_checked(path: Path) -> tuple[Any, VideoInfo]:
    """A decord reader of a file that it can be trusted with.

    It allocates what the header claims, and ends the process where that fails; frames stored turned come with four
    channels in a buffer for three. Its own decoding has no time limit.
    """
    with PyavVideo(path) as video:
        first = video.first()
        if _turn(first) != NO_TURN:
            raise ValueError("decord can't read a video that is stored turned")
        stream = video.stream
        rate = video.rate
        claims = (stream.frames, (stream.duration or 0) * (stream.time_base or 0) * rate)
        present = video.count_packets()
        if any(not 0 <= claim <= 2 * present + 100 for claim in claims):
            raise ValueError(f"decord can't be trusted with a header that claims more than its {present} frames")
    return open_decord(path), VideoInfo(present, rate, first.height, first.width)


def open_container(path: Path, timeout: float, section: Section | None = None) -> Any:
    """A video file, or a section of a file, opened by PyAV. Raises av.error.FFmpegError."""
    import av

    name = str(path) if section is None else "subfile,,start,{},end,{},,:{}".format(*section, os.path.abspath(path))
    return av.open(name, timeout=timeout, options={"format_whitelist": CONTAINERS})


class PyavVideo:
    """An open video: frames in order, or by seeking, for as long as `decode_seconds()` in all."""

    def __init__(self, path: Path, section: Section | None = None) -> None:
        self._path, self._section = path, section
        self._limit = decode_seconds()
        self._deadline = time.monotonic() + self._limit

    def __enter__(self) -> PyavVideo:
        import av
        from av.video.reformatter import VideoReformatter

        try:
            self._container = open_container(
                self._path, self._limit, self._section
            )  # of reading; decoding is checked below
        except av.error.ExitError as error:
            raise self._too_long() from error
        try:
            if not self._container.streams.video:
                raise ValueError("no video in it")
            self.stream: Any = self._container.streams.video[0]
            self.stream.thread_type, self.stream.thread_count = "NONE", 1  # as quick for these reads; docs/decisions.md
            self.stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            if self.stream.width * self.stream.height > MAX_PIXELS:
                raise ValueError(f"claims {self.stream.width}x{self.stream.height} pixels")
        except BaseException:
            self._container.close()
            raise
        self._reformatter: Any = VideoReformatter()  # one for all frames: its tables are made once
        self._begun: Iterator[Any] | None = None  # all frames from the first on, of a video that is just opened
        self._is_new = True
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def rate(self) -> float:
        """Frames a second by the header; 0 where it says none."""
        return float(self.stream.average_rate or self.stream.guessed_rate or 0)

    def info(self) -> VideoInfo:
        """Count, rate and upright size."""
        first = self.first()
        height, width = first.height, first.width
        if _turn(first)[0]:
            height, width = width, height
        if not self.rate > 0:
            raise ValueError("no frame rate")
        return VideoInfo(self.count(), self.rate, height, width)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Frames in presentation order, uint8 `[F, 3, H, W]`. Raises IndexError for one that isn't there."""
        wanted = sorted(set(indices))
        gap = max(later - index for index, later in zip([0, *wanted], wanted, strict=False))
        sparse = gap > 1 and gap * self.stream.height * self.stream.width > SEEK_PIXELS
        if not self._is_new and (sparse or self._begun is None):
            self._reopen()
        found = self.read_seeking(wanted) if sparse else None
        if found is None:
            found = self.read_in_order(wanted)
        missing = [index for index in wanted if index not in found]
        if missing:
            raise IndexError(f"has no frame {missing[0]}")
        height, width, _ = found[wanted[0]].shape
        frames = torch.empty(len(indices), 3, height, width, dtype=torch.uint8)
        for frame, index in zip(frames, indices, strict=True):
            if found[index].shape != (height, width, 3):
                raise ValueError(f"frame {index} has another size than frame {wanted[0]}")
            frame.copy_(found[index].permute(2, 0, 1))
        return frames

    def first(self) -> Any:
        """The first frame."""
        if not self._is_new:
            self._reopen()
        frames = self.decode()
        frame = next(frames, None)
        if frame is None:
            raise ValueError("no frames")
        self._begun = chain([frame], frames)
        return frame

    def count(self) -> int:
        """The header's count of frames where the file is large enough for it, else that of the packets there are."""
        claimed = int(self.stream.frames)
        start, stop = self._section or (0, self._path.stat().st_size)
        return claimed if 0 < claimed <= (stop - start) // 16 else self.count_packets()

    def count_packets(self) -> int:
        """Reads on from the start; frames can't be decoded afterwards."""
        self._begun = None
        self._container.seek(0)
        return sum(1 for _ in self._packets())

    def decode(self) -> Iterator[Any]:
        """Frames from here on."""
        for packet in self._demux():
            for frame in packet.decode():
                self._check_time()
                yield frame

    def read_in_order(self, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Frames by index, decoding all up to the last: uint8 `[H, W, 3]`. Rising `wanted`; those there are."""
        found: dict[int, Tensor] = {}
        asked = set(wanted)
        frames, self._begun = self._begun or self.decode(), None
        for index, frame in enumerate(frames):
            if index in asked:
                found[index] = self._upright(frame)
            if index >= wanted[-1]:
                break
        return found

    def read_seeking(self, wanted: Sequence[int]) -> dict[int, Tensor] | None:
        """The same, decoding from the keyframes before. None, back at the start, where that isn't sure to agree.

        The packets' times, sorted, are the frames' indices. That needs a container that stores times of presentation,
        one for each packet, none twice, and a keyframe first; and the seek must land on a known keyframe.
        """
        if self._container.format.name.split(",")[0] not in TIMED_FORMATS:
            return None
        first = next(self._packets(), None)
        packets = [first, *self._packets()] if first else []
        times = sorted(packet.pts for packet in packets if packet.pts is not None)
        number = {pts: index for index, pts in enumerate(times)}
        keys = sorted((number[p.pts], p.pts) for p in packets if p.is_keyframe and p.pts is not None)
        found: dict[int, Tensor] | None = None
        if len(number) == len(packets) and len(keys) > 1 and keys[0][0] == 0:
            found = self._from_keyframes([w for w in wanted if w < len(times)], number, keys)
        if found is None:
            self._reopen()
        return found

    def _reopen(self) -> None:
        self.__exit__()
        self.__enter__()

    def _from_keyframes(
        self, wanted: Sequence[int], number: dict[int, int], keys: list[tuple[int, int]]
    ) -> dict[int, Tensor] | None:
        found: dict[int, Tensor] = {}
        starts = [index for index, _ in keys]
        frames: Iterator[Any] = iter(())
        here = -1  # the frame decoded last
        for index in wanted:
            start, pts = keys[bisect_right(starts, index) - 1]
            if here < 0 or start > here + SEEK_FRAMES:
                self._container.seek(pts, stream=self.stream)
                frames = self._decode_after_seek(starts, number)
                here = start - 1
            for frame in frames:
                here = number.get(frame.pts, -1)
                if here >= index:
                    break
            if here != index:
                return None
            found[index] = self._upright(frame)
        return found

    def _decode_after_seek(self, starts: Sequence[int], number: dict[int, int]) -> Iterator[Any]:
        """Frames from the keyframe that a seek came to; none where it came to anything else."""
        landed = None
        for packet in self._demux():
            if landed is None:
                landed = number.get(packet.pts, -1) if packet.is_keyframe else -1
                if landed not in starts:
                    return
            for frame in packet.decode():
                self._check_time()
                if number.get(frame.pts, -1) >= landed:  # those before it need what was not decoded
                    yield frame

    def _packets(self) -> Iterator[Any]:
        """Packets that become frames."""
        for packet in self._demux():
            if packet.size and not packet.is_discard:
                yield packet

    def _demux(self) -> Iterator[Any]:
        import av

        self._is_new = False
        try:
            for packet in self._container.demux(self.stream):
                self._check_time()
                yield packet
        except av.error.ExitError as error:
            raise self._too_long() from error

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise self._too_long()

    def _too_long(self) -> TimeoutError:
        return TimeoutError(f"decoding took longer than {self._limit:g} s; CI2V_DECODE_SECONDS sets the limit")

    def _upright(self, frame: Any) -> Tensor:
        threads = 1 if frame.height * frame.width < THREADED_PIXELS else 0  # 0: as many as suit
        try:
            rgb = self._reformatter.reformat(frame, format="rgb24", threads=threads)
        except TypeError:  # an older PyAV, without the option
            rgb = self._reformatter.reformat(frame, format="rgb24")
        pixels = torch.from_numpy(rgb.to_ndarray())  # [H, W, 3]
        swap, mirror_columns, mirror_rows = _turn(frame)
        if swap:
            pixels = pixels.transpose(0, 1)
        flips = [dim for dim, flip in ((0, mirror_rows), (1, mirror_columns)) if flip]
        return pixels.flip(flips) if flips else pixels


def _turn(frame: Any) -> Turn:
    """What the frame's display matrix asks for, to the nearest quarter turn.

    The matrix `a b u; c d v; x y w`, nine 32-bit integers, takes the stored point (x, y), y downwards, to
    (a x + c y, b x + d y); where the picture is moved to and its scale don't matter here.
    """
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=9i", bytes(data)[:36])[:5]
            swap = abs(b) + abs(c) > abs(a) + abs(d)
            return (swap, c < 0, b < 0) if swap else (False, a < 0, d < 0)
    return NO_TURN
