"""Two processes on the CPU: they share the work, draw different noise, save once, and go on where they stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from contrastive_i2v.models import InstructPix2Pix
from contrastive_i2v.training.checkpoint import list_checkpoints
from contrastive_i2v.training.config import LossConfig, TrainConfig, save_config
from contrastive_i2v.training.inputs import batch_indices
from contrastive_i2v.training.logs import read_log


def launch(config: TrainConfig, path: Path) -> None:
    save_config(config, path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "contrastive_i2v", "train", "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_processes_train_save_and_resume(train_config: TrainConfig, tmp_path: Path) -> None:
    config = replace(train_config, steps=2, batch_size=2, loss=LossConfig(target_weight=0.0))
    launch(config, tmp_path / "first.yaml")
    assert [path.name for path in list_checkpoints(config.output / "checkpoints")] == ["step-00000002"]
    row = read_log(config.output / "log.jsonl")[-1]
    assert row["step"] == 2 and row["samples_per_second"] > 0
    InstructPix2Pix.from_pretrained(config.output / "model")
    with pytest.raises(AssertionError, match="another config"):
        launch(replace(config, steps=4, resume=True), tmp_path / "second.yaml")
    launch(replace(config, resume=True, log_every=1), tmp_path / "third.yaml")


def test_ranks_share_the_batches() -> None:
    batches = list(batch_indices(8, 2, start=0, stop=4, seed=0))
    ranks = [[rows for n, rows in enumerate(batches) if n % 2 == rank] for rank in (0, 1)]
    assert sorted(row for rank in ranks for rows in rank for row in rows) == list(range(8))
