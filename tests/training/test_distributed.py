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


@pytest.mark.processes
def test_two_processes_contrast_all_batches_of_a_step(train_config: TrainConfig, tmp_path: Path) -> None:
    """Two ranks of two batches of two: eight candidates, whose gradient the ranks reduce once."""
    config = replace(train_config, steps=2, batch_size=2, log_every=1, gradient_accumulation=2, gradient_cache=True)
    launch(config, tmp_path / "together.yaml")
    apart = replace(config, output=tmp_path / "apart", gradient_cache=False)
    launch(apart, tmp_path / "apart.yaml")
    first, second = (read_log(one.output / "log.jsonl")[0] for one in (config, apart))
    assert first["mse"] == pytest.approx(second["mse"], rel=1e-5)  # the same rows at the same weights
    assert first["contrastive/target"] > second["contrastive/target"]
    plain = replace(config, output=tmp_path / "noise", loss=LossConfig(target_weight=0.0))
    launch(plain, tmp_path / "noise.yaml")
    launch(replace(plain, output=tmp_path / "noise-apart", gradient_cache=False), tmp_path / "noise-apart.yaml")
    norms = [read_log(tmp_path / name / "log.jsonl")[0]["grad_norm"] for name in ("noise", "noise-apart")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)  # without a contrast it is the same gradient


def test_ranks_share_the_batches() -> None:
    batches = list(batch_indices([range(8)], [2], range(4), seed=0))
    ranks = [[rows for n, rows in enumerate(batches) if n % 2 == rank] for rank in (0, 1)]
    assert sorted(row for rank in ranks for rows in rank for row in rows) == list(range(8))
