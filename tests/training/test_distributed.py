"""Two processes on the CPU: they share the work, draw different noise, save once, and go on where they stopped."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import launch

from contrastive_i2v.models import load_system
from contrastive_i2v.training.batches import batch_indices
from contrastive_i2v.training.checkpoint import list_checkpoints, load_checkpoint
from contrastive_i2v.training.config import LossConfig, TrainConfig
from contrastive_i2v.training.logs import read_log


@pytest.mark.processes
def test_two_processes_train_save_and_resume(train_config: TrainConfig, tmp_path: Path) -> None:
    config = replace(train_config, steps=2, batch_size=2, checkpoint_every=1, loss=LossConfig(memory_bank=6))
    launch(config, tmp_path / "first.yaml")
    first, second = list_checkpoints(config.output / "checkpoints")
    tensors, state = load_checkpoint(second)
    # Each step put both processes' latents into the queue of six: the first's oldest two have left.
    assert tensors["memory_bank"]["target._extra_state"].tolist() == [2, 2, 4]
    assert len(tensors["memory_bank"]["target.queue"].flatten(1).unique(dim=0)) == 6
    row = read_log(config.output / "log.jsonl")[-1]
    assert row["step"] == 2 and row["samples_per_second"] > 0
    load_system(config.output / "model")

    shutil.rmtree(second)  # as if killed after the first step
    launch(replace(config, resume=True), tmp_path / "second.yaml")
    again, state_again = load_checkpoint(second)
    assert state_again == state
    for group, values in tensors.items():
        for name, value in values.items():
            assert torch.equal(value, again[group][name]), f"{group}: {name}"


def test_ranks_share_the_batches() -> None:
    batches = list(batch_indices([range(8)], [2], range(4), seed=0))
    ranks = [[rows for n, rows in enumerate(batches) if n % 2 == rank] for rank in (0, 1)]
    assert sorted(row for rank in ranks for rows in rank for row in rows) == list(range(8))
