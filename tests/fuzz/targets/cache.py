"""The latent cache: whatever happens to a file, what is read of it is what was written, or nothing."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from fuzzing import mutate

from contrastive_i2v.data.cache import CachedClip, load_clip, store_clip
from contrastive_i2v.data.examples import ExampleDataset, ExampleIndex
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoInfo
from contrastive_i2v.errors import InputError

WORDS = (
    b"[" * 3000, b"[", b"{", b'"', b"null", b"NaN", b"frames", b"moments", b'"F32"', b'"I64"', b'"F16"', b"sums",
    b"rows", b"-1", b"1e9",
)  # fmt: skip
ROWS = (5, 0)
"""Asked for by themselves, as training does."""


class Target:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "size" / "clip.safetensors"
        self.clip = Clip(Path("a.mp4"), "a dog")
        generator = torch.Generator().manual_seed(0)
        self.stored: list[CachedClip] = []
        self.seeds: list[bytes] = []
        for dtype in (torch.float32, torch.bfloat16):
            text = {
                "prompt_embeds": torch.randn(3, 2, generator=generator).to(dtype),
                "mask": torch.tensor([True, False]),
            }
            raw = torch.randn(3, 4, 2, 2, generator=generator).to(dtype)
            images = {0: {"image_latents": torch.randn(2, 3, generator=generator).to(dtype)}}
            info = VideoInfo(60, 25.0, 32, 48)
            self.stored.append(CachedClip([0, 5, 10], raw, text | {"length": torch.tensor(2)}, info, images))
            self.file.unlink(missing_ok=True)
            store_clip(self.file, self.stored[-1], self.clip)
            self.seeds.append(self.file.read_bytes())

    def draw(self, rng: random.Random) -> bytes:
        """Which of the entries, and the file."""
        which = rng.randrange(len(self.seeds))
        while (changed := mutate(rng, self.seeds[which], *self.seeds, words=WORDS)) in self.seeds:
            pass  # the other entry's whole file is no damage
        return bytes([which]) + changed

    def check(self, case: bytes) -> None:
        stored = self.stored[case[0]]
        self.file.write_bytes(case[1:])
        if (found := load_clip(self.file)) is not None:
            assert set(found.rows) <= set(stored.rows), found.rows
            self._check_same(found, stored, found.rows)
        if (found := load_clip(self.file, ROWS)) is not None:
            assert found.rows == list(ROWS), found.rows
            self._check_same(found, stored, ROWS)
        dataset = ExampleDataset([self.clip], [self.file], [ExampleIndex(0, ROWS, (True, True), 5.0)])
        try:
            example = dataset[0]
        except InputError:
            return
        assert torch.equal(example.raw, stored.raw[[1, 0]].float())
        assert example.text.keys() == stored.text.keys()
        assert torch.equal(example.image["image_latents"], stored.images[0]["image_latents"].float())

    def _check_same(self, found: CachedClip, stored: CachedClip, rows: list[int] | tuple[int, ...]) -> None:
        assert found.images.keys() == {row for row in stored.images if row in rows}
        for row, image in found.images.items():
            assert torch.equal(image["image_latents"], stored.images[row]["image_latents"])
        expected = stored.raw[[stored.rows.index(row) for row in rows]]
        assert found.info == stored.info, found.info
        assert found.raw.dtype == expected.dtype and torch.equal(found.raw, expected), found.raw
        assert found.text.keys() == stored.text.keys(), found.text
        for name, value in stored.text.items():
            assert found.text[name].dtype == value.dtype and torch.equal(found.text[name], value), name
