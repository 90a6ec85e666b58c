"""Weights for a metric: a state dict of tensors, or an InputError; nothing of many times the file's size."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import torch
from fuzzing import mutate
from safetensors.torch import save
from torch import Tensor

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.weights import read_state_dict

WORDS = (
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"data.pkl",
    b"ctorch\nFloatStorage\n",
    b"cos\nsystem\n",
    b"R.",
    b"\x80\x02",
)


class Target:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        state = {"weight": torch.arange(6.0).view(3, 2), "bias": torch.zeros(2, dtype=torch.float16)}
        new, old = io.BytesIO(), io.BytesIO()
        torch.save(state, new)
        torch.save(state, old, _use_new_zipfile_serialization=False)
        packed = io.BytesIO()
        with zipfile.ZipFile(new) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
            for record in source.infolist():
                target.writestr(zipfile.ZipInfo(record.filename), bytes(1 << 16), zipfile.ZIP_DEFLATED)
        self.seeds = {"pt": new.getvalue(), "pth": old.getvalue(), "bin": packed.getvalue(), "safetensors": save(state)}

    def draw(self, rng: random.Random) -> bytes:
        kind = rng.choice(sorted(self.seeds))
        return kind.encode() + b"\0" + mutate(rng, self.seeds[kind], *self.seeds.values(), words=WORDS)

    def check(self, case: bytes) -> None:
        kind, _, content = case.partition(b"\0")
        path = self.folder / f"weights.{kind.decode()}"
        path.write_bytes(content)
        try:
            state = read_state_dict(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error), str(error)
            return
        assert all(isinstance(value, Tensor) for value in state.values())
        held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
        assert sum(held.values()) <= len(content), held
