"""A file of scores: read as numbers by clip, or refused."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
from fuzzing import mutate

from contrastive_i2v.data.types import Clip
from contrastive_i2v.errors import InputError
from contrastive_i2v.training.scores import ABOUT, Condition, ScoreTable

WORDS = (b"PAR1", b"motion", b"key", b"hash", b"\xff\xff\xff\xff", b"\x00" * 8, b"nan", b"{" * 3000)
CONDITIONS = ("motion > 0.5", "motion<nan", "cuts==0", "a<b<c", "(motion)>1", "motion>1e999", "\u0663>1", "motion=>1")


class Target:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "scores.parquet"
        (folder / "a.mp4").touch()
        self.clip = Clip(folder / "a.mp4", "a dog")
        text = {name: ["a", "b"] for name in ABOUT}
        self.seeds = []
        for scores in ({"motion": [0.25, None], "cuts": [0, 3]}, {"motion": ["fast", "slow"]}, {"motion": [[1], [2]]}):
            pyarrow.parquet.write_table(pyarrow.table({**text, **scores}), self.file)
            self.seeds.append(self.file.read_bytes())

    def draw(self, rng: random.Random) -> bytes:
        """A condition's number, and a file."""
        return bytes([rng.randrange(len(CONDITIONS))]) + mutate(rng, rng.choice(self.seeds), *self.seeds, words=WORDS)

    def check(self, case: bytes) -> None:
        self.file.write_bytes(case[1:])
        try:
            table = ScoreTable(self.file)
            assert all(isinstance(value, float) for column in table.columns.values() for value in column)
            kept, skipped = table.choose([self.clip], [Condition.parse(CONDITIONS[case[0]])])
            assert len(kept) + len(skipped) == 1
            table.ranked(kept)
        except InputError:
            return
