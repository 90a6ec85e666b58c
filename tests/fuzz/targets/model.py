"""A model's folder of which one file is changed: it opens, or an InputError says what is wrong."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from fuzzing import mutate

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.loading import TINY

WORDS = (
    b"[" * 3000, b"[", b"{", b'"', b"null", b"true", b"NaN", b"1e999", b"9" * 5000, b"-1", b"0", b"99999999999",
    b'""', b"{}", b"[]",
)  # fmt: skip


class Target:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "model"
        shutil.copytree(TINY, self.folder)
        files = [file for file in sorted(self.folder.rglob("*")) if file.suffix in (".json", ".safetensors")]
        self.files = {str(file.relative_to(self.folder)): _head_and_rest(file) for file in files}

    def draw(self, rng: random.Random) -> bytes:
        name = rng.choice(sorted(self.files))
        return name.encode() + b"\0" + mutate(rng, self.files[name][0], words=WORDS)

    def check(self, case: bytes) -> None:
        name, _, changed = case.partition(b"\0")
        file = self.folder / name.decode()
        head, rest = self.files[name.decode()]
        file.write_bytes(changed + rest)
        try:
            load_system(self.folder, device="cpu")
        except InputError as error:
            assert str(self.folder) in str(error) and "\n" not in str(error), str(error)
        finally:
            file.write_bytes(head + rest)


def _head_and_rest(file: Path) -> tuple[bytes, bytes]:
    """What is changed, and what is not: a changed weight can't be told from another model's."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little") if file.suffix == ".safetensors" else len(content)
    return content[:end], content[end:]
