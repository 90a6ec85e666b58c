"""Shards of latents: whatever happens to a shard or its manifest, what is read is what was written, or one error."""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import asdict
from pathlib import Path

import torch
from fuzzing import mutate

from contrastive_i2v.data.cache import CachedClip, pack_clip
from contrastive_i2v.data.examples import WindowReader
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.shards import MANIFEST, VERSION, Shard, read_manifest
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoInfo
from contrastive_i2v.errors import InputError
from contrastive_i2v.system import Window

WORDS = (
    b"[" * 3000, b"[", b"{", b'"', b"null", b"NaN", b"examples", b"moments", b"ustar", b"../", b"-1", b"1e9",
    b"\0" * 512,
)  # fmt: skip


class Target:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        self.raw = [torch.randn(3, 4, 2, 2, generator=generator) for _ in range(3)]
        file = io.BytesIO()
        with tarfile.TarFile(fileobj=file, mode="w") as tar:
            for number, raw in enumerate(self.raw):
                cached = CachedClip([0, 5, 10], raw, {"prompt_embeds": torch.ones(3, 2)}, VideoInfo(60, 25.0, 32, 48))
                after = [[5, 10], [True, True], 5.0, []]
                windows = [[[0, 5], [True, True], 5.0, [after]], after]
                data = pack_clip(cached, Clip(Path(f"{number}.mp4"), "a dog"), examples=windows)
                header = tarfile.TarInfo(f"{number:09d}.safetensors")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        shard = {"name": "00000-00000.tar", "bytes": len(file.getvalue()), "clips": 3, "examples": 6}
        shard |= {"bucket": [16, 16, 2], "followed": [3]}
        read = asdict(WindowReader(Window(2), 1, (16, 16), FramesConfig(), 0))
        manifest = {"version": VERSION, "fingerprint": "a", "windows": read, "clips": 3, "examples": 6, "rates": [5.0]}
        self.seeds = [
            json.dumps(manifest | {"skipped": [["b.mp4", "why"]], "shards": [shard]}).encode(),
            file.getvalue(),
        ]

    def draw(self, rng: random.Random) -> bytes:
        """Which of the files, and its bytes."""
        which = rng.randrange(2)
        return bytes([which]) + mutate(rng, self.seeds[which], *self.seeds, words=WORDS)

    def check(self, case: bytes) -> None:
        contents = [*self.seeds]
        contents[case[0]] = case[1:]
        for name, data in zip((MANIFEST, "00000-00000.tar"), contents, strict=True):
            (self.folder / name).write_bytes(data)
        try:
            manifest = read_manifest(str(self.folder))
            for info in manifest.shards:
                shard = Shard(f"{self.folder}/{info.name}", info)
                found = [shard[number].raw for number in range(info.examples)]
                followed = [shard.read(one).raw for first in shard.examples for one in first.following]
                assert all(map(torch.equal, followed, found[1::2]))
                assert len(found) == 6, len(found)
                for number, one in enumerate(found):
                    rows = self.raw[number // 2][number % 2 : number % 2 + 2]
                    assert torch.equal(one, rows), one
        except InputError:
            return
