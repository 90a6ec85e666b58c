"""Runs that die, runs that are the same, and runs of two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from contrastive_i2v.training.checkpoint import list_checkpoints, load_checkpoint
from contrastive_i2v.training.config import TrainConfig, save_config
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.trainer import Trainer


class Interrupted(Exception):
    pass


SCALE = 2.0**26


class Fp16Accelerator(Accelerator):
    """accelerate scales losses on GPUs alone; this one does on the CPU, too. The first steps overflow."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.state.mixed_precision == "fp16":
            self.native_amp = True
            self.scaler = torch.amp.GradScaler(self.device.type, init_scale=SCALE)


def train_until(config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run, and die at the beginning of `step`."""
    original = Trainer._train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.state.step == step:
            raise Interrupted
        return original(self, batches)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "_train_step", train_step)
        Trainer(config).run()


def assert_same_run(first: Path, second: Path) -> None:
    """Bitwise the same final weights, moving average, optimizer state and losses."""
    a, b = (load_checkpoint(list_checkpoints(path / "checkpoints")[-1]) for path in (first, second))
    assert a[1] == b[1]
    for group in a[0]:
        assert a[0][group].keys() == b[0][group].keys()
        for name, value in a[0][group].items():
            assert torch.equal(value, b[0][group][name]), f"{group}: {name}"
    losses = [[(row["step"], row["loss"]) for row in read_log(path / "log.jsonl")] for path in (first, second)]
    assert repr(losses[0]) == repr(losses[1])  # NaN isn't equal to itself


def last_step(config: TrainConfig) -> int:
    saved = list_checkpoints(config.output / "checkpoints")
    return int(saved[-1].name.removeprefix("step-")) if saved else 0


def beside(config: TrainConfig, name: str, **changes: Any) -> TrainConfig:
    """The same run in another folder, with changes."""
    return replace(config, output=config.output.with_name(name), **changes)


def last_tensors(config: TrainConfig) -> dict[str, dict[str, torch.Tensor]]:
    """What the last checkpoint holds."""
    return load_checkpoint(list_checkpoints(config.output / "checkpoints")[-1])[0]


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TRAIN = ("-m", "contrastive_i2v", "train", "--config")


def launch(config: TrainConfig, path: Path, *options: str, script: Sequence[str] = TRAIN, **environment: str) -> str:
    """Train in two processes on the CPU, the config written to `path`; what they said."""
    save_config(config, path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    environment = {**os.environ, **ENVIRONMENT, **environment}
    done = subprocess.run([*command, *script, str(path)], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def start_ranks(config: TrainConfig, path: Path, ranks: int = 2) -> list[subprocess.Popen[str]]:
    """Train in several processes that no launcher watches, the config written to `path`; the run has a checkpoint."""
    save_config(config, path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {**os.environ, **ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    started = []
    for rank in range(ranks):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, *TRAIN, str(path)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    deadline = time.monotonic() + 120
    while not last_step(config):
        assert all(one.poll() is None for one in started) and time.monotonic() < deadline
        time.sleep(0.05)
    return started
