"""Killed at every file operation; and the fault table says what the tests hold."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from faults import PAGE, faults, page  # noqa: E402

from contrastive_i2v.data.cache import CachedClip, load_clip, store_clip
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoInfo
from contrastive_i2v.models import load_system
from contrastive_i2v.training.checkpoint import load_last_checkpoint, save_checkpoint

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.move")
STEPS = {"left": -1}


def _count(event: str, arguments: tuple[object, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if STEPS["left"] >= 0 and (event in CHANGES or writes):
        if STEPS["left"] == 0:
            os._exit(9)  # as a kill: no handler, no clean-up
        STEPS["left"] -= 1


sys.addaudithook(_count)


def killed_at(operation: int, act: Callable[[], object]) -> bool:
    """Run `act` in a child that dies before its file operation number `operation`; whether it died."""
    child = os.fork()
    if child == 0:
        STEPS["left"] = operation
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.fault("killed before any one file operation of writing a checkpoint", "the last whole one is used")
def test_a_checkpoint_survives_a_kill_at_every_file_operation(tmp_path: Path) -> None:
    tensors = {name: {"weight": torch.full((4,), 1.0)} for name in ("network", "optimizer")}
    later = {name: {"weight": torch.full((4,), 2.0)} for name in ("network", "optimizer")}
    save_checkpoint(tmp_path / "before", 1, tensors, {}, keep=1)
    for operation in range(100):
        folder = Path(shutil.copytree(tmp_path / "before", tmp_path / f"run{operation}"))
        died = killed_at(operation, lambda folder=folder: save_checkpoint(folder, 2, later, {}, keep=1))
        _, groups, state = load_last_checkpoint(folder)
        assert state["step"] in (1, 2)
        assert all(float(group["weight"][0]) == state["step"] for group in groups.values())
        if not died:
            break
    assert operation >= 3 and state["step"] == 2


@pytest.mark.fault(
    "killed before any one file operation of caching a clip", "the entry is the old or the new one, whole"
)
def test_a_cached_clip_survives_a_kill_at_every_file_operation(tmp_path: Path) -> None:
    clip, info = Clip(tmp_path / "a.mp4", "a"), VideoInfo(9, 25.0, 8, 8)
    old = CachedClip([1], torch.ones(1, 2, 1, 1), {"prompt_embeds": torch.ones(2)}, info)
    new = CachedClip([2], torch.full((1, 2, 1, 1), 2.0), old.text, info)
    for operation in range(50):
        file = tmp_path / str(operation) / "a.safetensors"
        store_clip(file, old, clip)
        died = killed_at(operation, lambda file=file: store_clip(file, new, clip))
        found = load_clip(file)
        assert found is not None and found.rows in ([1], [1, 2])
        assert found.raw[:, 0, 0, 0].tolist() == [float(row) for row in found.rows]
        if not died:
            break
    assert operation >= 1 and found.rows == [1, 2]


@pytest.mark.fault(
    "killed before any one file operation of writing a model", "a folder with system.json is a whole model"
)
def test_a_model_survives_a_kill_at_every_file_operation(pipeline_folder: Path, tmp_path: Path) -> None:
    system = load_system(pipeline_folder, device="cpu")
    system.save_weights = lambda folder: (folder / "weights.txt").write_text("new")  # type: ignore[method-assign]
    for operation in range(60):
        folder = tmp_path / str(operation)
        folder.mkdir()
        (folder / "weights.txt").write_text("old")
        (folder / "system.json").write_text("{}")
        died = killed_at(operation, lambda folder=folder: system.save(folder))
        if (folder / "system.json").exists() and (folder / "system.json").read_text() != "{}":
            assert (folder / "weights.txt").read_text() == "new"
        elif (folder / "system.json").exists():
            assert (folder / "weights.txt").read_text() == "old"
        if not died:
            break
    assert operation >= 3 and (folder / "weights.txt").read_text() == "new"


def test_the_fault_table_is_what_the_tests_hold() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/faults.py"
    assert len(list(faults())) >= 15
