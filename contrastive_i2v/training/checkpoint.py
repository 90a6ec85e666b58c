"""Checkpoints that appear whole or not at all, and hold all a run needs to go on bitwise.

A checkpoint is a folder `step-00000200/` of safetensors files (one a group of tensors) and `state.json`. It is
written beside its name, flushed to disk and renamed, so a kill or a full disk at any moment leaves the previous
ones as they were. Everything random in training is a function of (seed, step), so no generator is saved.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import digest, file_hash, parse_json

TensorGroups = dict[str, dict[str, Tensor]]

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""State dicts are collected from every rank, whole, on rank 0's CPU; the other ranks get empty ones."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write `folder/step-{step}` atomically and prune all but the last `keep`.

    Raises InputError naming the folder when the disk is full; what was there before stays.
    """
    final = folder / f"step-{step:08d}"
    part = folder / f".{final.name}.{os.getpid()}.part"
    try:
        for stale in folder.glob(".step-*.part"):
            shutil.rmtree(stale)
        part.mkdir(parents=True)
        for group, values in tensors.items():
            contiguous = {k: v.detach().cpu().contiguous() for k, v in values.items()}
            save_file(contiguous, part / f"{group}.safetensors")
        hashes = {file.name: file_hash(file) for file in sorted(part.iterdir())}
        said = {"step": step, **state, "hashes": hashes}
        (part / "state.json").write_text(json.dumps(said | {"hash": digest(said, 64)}))
        for path in [*part.iterdir(), part]:
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        part.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error):
            raise InputError(
                f"{final}: the disk is full, this checkpoint was not written; earlier ones are whole. Free some "
                "space and go on with --resume"
            ) from error
        raise InputError(f"{final}: the checkpoint could not be written ({error}); earlier ones are whole") from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints below `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"step-{'[0-9]' * 8}") if (path / "state.json").is_file())


class DamagedCheckpoint(InputError):
    """A checkpoint that doesn't hold what was written."""


def load_checkpoint(path: Path) -> tuple[TensorGroups, dict[str, Any]]:
    """Read a checkpoint's tensors by group, and its state.

    Raises:
        DamagedCheckpoint: naming what in it isn't what was written.
        InputError: an earlier version wrote it, without hashes.
    """
    try:
        state: dict[str, Any] = parse_json((path / "state.json").read_text())
        if isinstance(state, dict) and not {"hash", "hashes"} & state.keys():
            raise InputError(f"{path}: an earlier version wrote this checkpoint; start again in a new --output")
        said = {name: value for name, value in state.items() if name != "hash"}
        if state.get("hash") != digest(said, 64):
            raise ValueError("state.json isn't what was written")
        for name, expected in state["hashes"].items():
            if file_hash(path / name) != expected:
                raise ValueError(f"{name} isn't what was written")
        return {Path(name).stem: load_file(path / name) for name in state["hashes"]}, state
    except InputError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path}: damaged checkpoint ({one_line(error)})") from error


def load_last_checkpoint(folder: Path) -> tuple[Path, TensorGroups, dict[str, Any]]:
    """The last checkpoint below `folder` that is whole; a damaged one is named, and put aside as `damaged-step-...`.

    Raises InputError where none is whole.
    """
    reasons = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return path, *load_checkpoint(path)
        except InputError as error:
            reasons.append(str(error))
            if not isinstance(error, DamagedCheckpoint):
                print(f"{error}; the one before is used")
                continue
            with suppress(OSError):  # another rank may have been first
                path.rename(path.with_name(f"damaged-{path.name}"))
            print(f"{error}; put aside, and the one before is used")
    raise InputError(f"{folder}: no checkpoint is whole ({'; '.join(reasons)}); start again in a new --output")


def pack_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as tensors named `{parameter}.{name}`, and its groups as plain values. Every rank calls, and
    rank 0 alone gets them."""
    packed: dict[str, Any] = get_optimizer_state_dict(module, optimizer, options=WHOLE)
    tensors = {
        f"{parameter}.{name}": value
        for parameter, values in packed.get("state", {}).items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    return tensors, packed.get("param_groups", [])


def unpack_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """The inverse of `pack_optimizer`. State of a parameter's shape gets its strides too, as fused optimizers need."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, _, name = key.rpartition(".")
        state.setdefault(parameter, {})[name] = value
    packed: dict[str, Any] = {"state": state, "param_groups": groups}
    set_optimizer_state_dict(module, optimizer, optim_state_dict=packed, options=WHOLE)
    for weight, values in optimizer.state.items():
        for name, moment in values.items():
            if isinstance(moment, Tensor) and moment.shape == weight.shape and moment.stride() != weight.stride():
                values[name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
