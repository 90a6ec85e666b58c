"""Videos: `probe` and `read_frames` give frames of the stated size or a VideoError, in time."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import av
import torch
from fuzzing import INTEGERS, mutate
from torch import Tensor

from contrastive_i2v.data.video import VideoError, probe, read_frames

FORMATS = {  # suffix: codec, pixel format
    "mp4": ("libx264", "yuv420p"),
    "webm": ("libvpx", "yuv420p"),
    "mkv": ("ffv1", "yuv444p"),
    "mov": ("mjpeg", "yuvj420p"),
    "avi": ("mpeg4", "yuv420p"),
    "gif": ("gif", "rgb8"),
}
FRAMES, HEIGHT, WIDTH = 8, 24, 40
ATOMS = (
    b"moov", b"trak", b"tkhd", b"mdhd", b"stsd", b"stts", b"stsz", b"stsc", b"stco", b"ctts", b"elst", b"avc1",
    b"mdat",
)  # fmt: skip
WORDS = (
    *ATOMS, b"ffconcat version 1.0\nfile 'a.mp4'\n", b"#EXTM3U\n", b"RIFF", b"LIST", b"\x1a\x45\xdf\xa3",
    b"\0\0\0\1",
)  # fmt: skip
MATRICES = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (0, 0, 0, 0), (-(2**15), 2**15 - 1, 3, -7))


def write(path: Path, frames: Tensor) -> bytes:
    """A video of uint8 `[F, 3, H, W]` in the format of the file's suffix."""
    codec, pixels = FORMATS[path.suffix[1:]]
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[-2:], pixels
        stream.options = {"g": "3", "flags": "+bitexact"} | ({"x264-params": "mbtree=0"} if codec == "libx264" else {})
        stream.thread_count = 1
        for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode())
    return path.read_bytes()


class Target:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (FRAMES, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
        self.seeds = [write(folder / f"seed.{suffix}", noise) for suffix in FORMATS]
        av.logging.set_level(None)

    def draw(self, rng: random.Random) -> bytes:
        seed = rng.choice(self.seeds)
        at = seed.find(b"tkhd")
        if at > 0 and rng.random() < 0.3:  # a version-0 header has its matrix 44 bytes on, and the size behind it
            a, b, c, d = (one << 16 for one in rng.choice(MATRICES))
            matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
            seed = seed[: at + 44] + matrix + seed[at + 80 :]
            if rng.random() < 0.3:
                return seed
        if rng.random() < 0.3:  # a size, count or duration: the integers of an index are aligned
            place = 4 * rng.randrange(len(seed) // 4)
            seed = seed[:place] + struct.pack(">I", rng.choice(INTEGERS) % 2**32) + seed[place + 4 :]
        return mutate(rng, seed, *self.seeds, words=WORDS)

    def check(self, case: bytes) -> None:
        path = self.folder / "video.mp4"
        path.write_bytes(case)
        try:
            info = probe(path)
            assert info.frames >= 0 and 0 < info.fps < float("inf") and min(info.height, info.width) > 0, info
            frames = read_frames(path, [3, 0])
            assert frames.dtype == torch.uint8 and frames.shape == (2, 3, info.height, info.width), (frames.shape, info)
            assert torch.equal(read_frames(path, [0])[0], frames[1]), "two reads of a frame differ"
        except VideoError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error), str(error)
