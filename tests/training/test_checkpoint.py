"""Checkpoints: whole or not at all, pruned, and what they hold comes back exactly."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from contrastive_i2v.errors import InputError
from contrastive_i2v.training import checkpoint
from contrastive_i2v.training.checkpoint import (
    DamagedCheckpoint,
    list_checkpoints,
    load_checkpoint,
    load_last_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"network": {"weight": torch.full((3, 2), value)}}


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    for step in (2, 10, 100):
        save_checkpoint(tmp_path, step, tensors(step), {"note": "x"}, keep=2)
    kept = list_checkpoints(tmp_path)
    assert [path.name for path in kept] == ["step-00000010", "step-00000100"]
    groups, state = load_checkpoint(kept[-1])
    assert torch.equal(groups["network"]["weight"], torch.full((3, 2), 100.0))
    assert {name: state[name] for name in ("step", "note")} == {"step": 100, "note": "x"}


@pytest.mark.fault(
    "the disk is full while a checkpoint is written",
    "one line; the earlier checkpoint is whole, nothing half-written stays",
)
def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, tensors(1), {}, keep=1)

    def full(values: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match="step-00000002: the disk is full.*--resume"):
        save_checkpoint(tmp_path, 2, tensors(2), {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path / "step-00000001")[0]["network"]["weight"][0, 0] == 1


@pytest.mark.fault("killed while a checkpoint is written", "the half-written one is none, and is cleared away")
def test_what_a_kill_left_half_written_is_not_a_checkpoint_and_goes(tmp_path: Path) -> None:
    stale = tmp_path / ".step-00000005.123.part"
    stale.mkdir()
    (stale / "network.safetensors").write_bytes(b"half")
    assert list_checkpoints(tmp_path) == []
    save_checkpoint(tmp_path, 6, tensors(6), {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, tensors(1), {}, keep=1)
    (path / "network.safetensors").write_bytes(b"\x00" * 7)
    with pytest.raises(InputError, match="step-00000001: damaged checkpoint.*network.safetensors isn't what"):
        load_checkpoint(path)


@pytest.mark.fault(
    "a bit flips in a checkpoint's weights, optimizer or state",
    "it is named and put aside, and the one before is used",
)
@pytest.mark.parametrize("file", ["network.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_byte_anywhere_is_found_and_the_checkpoint_before_is_used(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        groups = tensors(step) | {"optimizer": {"weight.step": torch.tensor(float(step))}}
        path = save_checkpoint(tmp_path, step, groups, {"groups": [{"lr": 0.1}]}, keep=2)
    content = bytearray((path / file).read_bytes())
    for place in range(0, len(content), 11):
        changed = bytearray(content)
        changed[place] ^= 1
        (path / file).write_bytes(changed)
        with pytest.raises(DamagedCheckpoint, match="step-00000002: damaged checkpoint"):
            load_checkpoint(path)
    used, groups, state = load_last_checkpoint(tmp_path)
    assert used.name == "step-00000001" and state["step"] == 1 and float(groups["network"]["weight"][0, 0]) == 1
    assert "step-00000002: damaged checkpoint" in capsys.readouterr().out
    assert (tmp_path / "damaged-step-00000002").is_dir(), "what is damaged is put aside, not deleted"
    save_checkpoint(tmp_path, 2, tensors(2), {}, keep=1)
    assert [one.name for one in list_checkpoints(tmp_path)] == ["step-00000002"]
    (tmp_path / "step-00000002" / "state.json").write_text("[" * 3000)
    with pytest.raises(InputError, match="no checkpoint is whole"):
        load_last_checkpoint(tmp_path)


@pytest.mark.fault("a checkpoint loses what says its version", "the one before is used")
def test_damage_that_looks_like_an_earlier_version_falls_back_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        path = save_checkpoint(tmp_path, step, tensors(step), {}, keep=2)
    (path / "state.json").write_text("{}")
    assert load_last_checkpoint(tmp_path)[0].name == "step-00000001"
    assert "step-00000002: an earlier version wrote this" in capsys.readouterr().out


def test_an_optimizer_goes_on_exactly() -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer: torch.nn.Linear, optimizer: torch.optim.AdamW, seed: int) -> None:
        optimizer.zero_grad()
        layer(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    whole, whole_optimizer = build()
    for seed in range(4):
        step(whole, whole_optimizer, seed)
    half, half_optimizer = build()
    for seed in range(2):
        step(half, half_optimizer, seed)
    packed, groups = pack_optimizer(half, half_optimizer)
    other, other_optimizer = build()
    other.load_state_dict(half.state_dict())
    unpack_optimizer(other, other_optimizer, {name: value.clone() for name, value in packed.items()}, groups)
    for seed in range(2, 4):
        step(other, other_optimizer, seed)
    assert torch.equal(other.weight, whole.weight)
