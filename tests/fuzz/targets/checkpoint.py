"""A checkpoint of which one file is changed: named as damaged, or what was written."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from fuzzing import mutate

from contrastive_i2v.errors import InputError
from contrastive_i2v.training.checkpoint import load_checkpoint, load_last_checkpoint, save_checkpoint

WORDS = (
    b"[" * 3000, b"[", b"{", b'"', b"null", b"NaN", b"1e999", b"9" * 5000, b'"hash"', b'"hashes"', b'"step"', b"/",
    b"..", b'"F16"',
)  # fmt: skip
STATE = {
    "groups": [{"lr": 0.1, "betas": [0.9, 0.999]}],
    "unlogged": [],
    "ema_step": 7,
    "nonfinite_steps": 0,
    "note": "\u00e9",
}


class Target:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups = {
            "network": {"weight": torch.arange(6.0).view(3, 2), "bias": torch.zeros(2, dtype=torch.bfloat16)},
            "optimizer": {"weight.step": torch.tensor(2.0), "weight.exp_avg": torch.ones(3, 2)},
        }
        save_checkpoint(folder, 1, self.groups, STATE, keep=2)
        self.path = save_checkpoint(folder, 2, self.groups, STATE, keep=2)
        self.files = {file.name: file.read_bytes() for file in sorted(self.path.iterdir())}
        self.state = json.loads(self.files["state.json"])

    def draw(self, rng: random.Random) -> bytes:
        name = rng.choice(sorted(self.files))
        return name.encode() + b"\0" + mutate(rng, self.files[name], *self.files.values(), words=WORDS)

    def check(self, case: bytes) -> None:
        name, _, changed = case.partition(b"\0")
        for file, content in self.files.items():
            (self.path / file).write_bytes(changed if file == name.decode() else content)
        try:
            self._check_same(*load_checkpoint(self.path))
        except InputError as error:
            assert str(error).startswith(f"{self.path}: ") and "\n" not in str(error), str(error)
        used, groups, state = load_last_checkpoint(self.folder)
        self._check_same(groups, {**state, "step": 2, "hash": self.state["hash"]} if used != self.path else state)
        aside = self.folder / f"damaged-{self.path.name}"
        if aside.exists():
            aside.rename(self.path)

    def _check_same(self, groups: dict[str, dict[str, torch.Tensor]], state: dict[str, object]) -> None:
        assert state == self.state, state
        assert groups.keys() == self.groups.keys()
        for name, values in self.groups.items():
            assert groups[name].keys() == values.keys()
            for key, value in values.items():
                assert groups[name][key].dtype == value.dtype and torch.equal(groups[name][key], value), key
