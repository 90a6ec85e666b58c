"""A run's config.yaml: it is read, and written again means the same, or an InputError says what is wrong."""

from __future__ import annotations

import random
from pathlib import Path

from fuzzing import mutate

from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import TrainConfig, load_config, save_config

WORDS = (
    b"&a ", b"*a", b"<<: *a", b"!!binary ", b"!!python/name:os.system ", b"2026-99-99", b"1:60:60", b"0x", b".nan",
    b".inf", b"-.inf", b"~", b"null", b"[" * 3000, b"[", b"]", b"{", b"}", b"- ", b"? ", b": ", b"|\n", b"\t", b"\0",
    b"%YAML 1.1\n", b"---\n",
    b"9" * 5000, b"1e999", b"-1", b"0", b"true", b"steps: ", b"kind: ", b"a: &a [x,x,x,x,x,x,x,x,x]\n",
    b"".join(b"%c: &%c [%s]\n" % (98 + k, 98 + k, b",".join([b"*%c" % (97 + k)] * 9)) for k in range(9)), b"*j",
)  # fmt: skip


class Target:
    def __init__(self, folder: Path) -> None:
        self.file, self.again = folder / "config.yaml", folder / "again.yaml"
        save_config(TrainConfig(output=folder / "run"), self.file)
        self.seed = self.file.read_bytes().replace(str(folder).encode(), b"/a")  # it must not depend on the folder

    def draw(self, rng: random.Random) -> bytes:
        return mutate(rng, self.seed, words=WORDS)

    def check(self, case: bytes) -> None:
        self.file.write_bytes(case)
        try:
            config = load_config(TrainConfig, self.file)
        except InputError as error:
            assert str(error).startswith(f"{self.file}") and "\n" not in str(error), str(error)
            assert len(str(error)) < 2000, len(str(error))
            return
        save_config(config, self.again)
        assert repr(load_config(TrainConfig, self.again)) == repr(config), "written again it means something else"
