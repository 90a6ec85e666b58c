"""Several processes on the CPU: they share the work, draw different noise, save once, end together, and go on where
they stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import disturbed_ranks
import pytest
import torch
import trained_ranks
from runs import ENVIRONMENT, assert_same_run, beside, last_step, launch, start_ranks

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.training.batches import batch_indices
from contrastive_i2v.training.checkpoint import list_checkpoints, load_checkpoint
from contrastive_i2v.training.config import LossConfig, TrainConfig, ValidationConfig, save_config
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.sharding import check_sharding
from contrastive_i2v.training.trainer import Trainer


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


@pytest.mark.processes
def test_sharded_processes_train_save_and_resume(train_config: TrainConfig, clips: Path, tmp_path: Path) -> None:
    data = replace(train_config.data, validation_path=clips / "test")
    held_out = ValidationConfig(every=2, timesteps=1)
    config = replace(train_config, steps=4, batch_size=2, shard=True, data=data, validation=held_out)
    script = ["-m", "contrastive_i2v", "train", "--no-calibration", "--config"]
    launch(config, tmp_path / "first.yaml", script=script)
    assert any(row.get("validation/mse", 0) > 0 for row in read_log(config.output / "log.jsonl"))
    last = list_checkpoints(config.output / "checkpoints")[-1]
    tensors, state = load_checkpoint(last)
    plain = Trainer(beside(config, "plain", shard=False, steps=1)).run()
    network = load_system(config.output / "model").network
    for name, value in network.named_parameters():
        assert torch.equal(value, tensors["ema"][name]), name
    assert network.state_dict().keys() == load_system(plain).network.state_dict().keys() == tensors["network"].keys()
    configs = [(folder / "unet" / "config.json").read_text() for folder in (config.output / "model", plain)]
    assert configs[0] == configs[1]

    shutil.rmtree(last)  # as if killed after the second step
    launch(replace(config, resume=True), tmp_path / "second.yaml", script=script)
    again, state_again = load_checkpoint(last)
    assert state_again == state
    for group, values in tensors.items():
        for name, value in values.items():
            assert torch.equal(value, again[group][name]), f"{group}: {name}"


def test_what_a_sharded_network_cannot_do_is_refused(train_config: TrainConfig) -> None:
    with pytest.raises(InputError, match="shard: one process has nobody to share with"):
        Trainer(replace(train_config, shard=True))
    with pytest.raises(InputError, match="shard: adapters are small"):
        check_sharding(replace(train_config, lora=AdapterConfig(rank=4)), 2)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharded_parameters_are_refused(name: str, train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match=f"accelerate launch: {name} is not supported; expected --multi_gpu"):
        Trainer(train_config)


def test_ranks_share_the_batches() -> None:
    batches = list(batch_indices([range(8)], [2], range(4), seed=0))
    ranks = [[rows for n, rows in enumerate(batches) if n % 2 == rank] for rank in (0, 1)]
    assert sorted(row for rank in ranks for rows in rank for row in rows) == list(range(8))


@pytest.mark.processes
@pytest.mark.fault("one rank's gradient is NaN", "all ranks skip the step, and stay alike")
def test_ranks_make_the_steps_of_one_process_and_skip_together(train_config: TrainConfig, tmp_path: Path) -> None:
    config = replace(train_config, steps=3, batch_size=trained_ranks.ROWS)
    save_config(config, tmp_path / "config.yaml")
    command = [sys.executable, trained_ranks.__file__, str(tmp_path / "config.yaml"), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    cases = {
        name: [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(ranks)]
        for name, (_, ranks) in trained_ranks.CASES.items()
    }

    for kind, ranks in (("", "apart"), (trained_ranks.BALANCED, trained_ranks.BALANCED + "apart"), ("", "sharded")):
        (one,), four = cases[kind + "together"], cases[ranks]
        losses = torch.stack([rank["losses"] for rank in four])  # [ranks, steps]
        torch.testing.assert_close(losses.mean(0), one["losses"], rtol=1e-6, atol=0)
        assert len(losses[:, 0].unique()) == len(four)
        for step, truth in enumerate(one["gradients"]):
            mine = four[0]["gradients"][step]
            assert (mine - truth).norm() < 1e-5 * truth.norm()
            assert all(torch.equal(rank["gradients"][step], mine) for rank in four)
    drawn = torch.stack([noise for rank in four for noise in rank["noise"]])
    assert len(drawn.flatten(1).unique(dim=0)) == len(drawn) == 3 * len(four)

    for name in ("nan", "sharded nan"):
        assert [rank["skipped"] for rank in cases[name]] == [1] * len(four)
        assert [step.isfinite().all().item() for step in cases[name][0]["gradients"]] == [True, False, True]
    for name in cases.keys() - {"together", trained_ranks.BALANCED + "together"}:
        assert all(torch.equal(rank["weights"], cases[name][0]["weights"]) for rank in cases[name])
        assert cases[name][0]["weights"].isfinite().all()


@pytest.mark.processes
@pytest.mark.fault("SIGTERM to one rank of several", "all save one checkpoint after the same step and exit with 143")
def test_a_signal_to_one_rank_saves_and_ends_all(train_config: TrainConfig, tmp_path: Path) -> None:
    config = replace(train_config, steps=4000, batch_size=2, checkpoint_every=2, keep_checkpoints=4000)
    ranks = start_ranks(config, tmp_path / "config.yaml")
    ranks[1].terminate()
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [128 + signal.SIGTERM] * 2, said
    tensors, state = load_checkpoint(list_checkpoints(config.output / "checkpoints")[-1])
    assert state["step"] == last_step(config) < 4000 and tensors.keys() == {"network", "optimizer", "ema"}


@pytest.mark.processes
@pytest.mark.fault("`kill -9` for one rank of several", "the others end within a minute and name it")
@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_ends_the_others(dead: int, train_config: TrainConfig, tmp_path: Path) -> None:
    ranks = start_ranks(replace(train_config, steps=4000, batch_size=2), tmp_path / "config.yaml")
    ranks[dead].kill()
    killed = time.monotonic()
    _, said = ranks[1 - dead].communicate(timeout=60)
    assert ranks[1 - dead].returncode == 4 and time.monotonic() - killed < 60
    assert f"error: rank {dead} of 2 died or is out of reach" in said
    ranks[dead].communicate()


@pytest.mark.processes
@pytest.mark.fault("`kill -9` for one rank of four", "the others end; resumed, the run ends with undisturbed bits")
@pytest.mark.fault(
    "SIGTERM to all of four ranks", "all save and exit with 143; resumed, the run ends with undisturbed bits"
)
@pytest.mark.fault(
    "the batch of one rank of four is NaN, and the run is stopped later",
    "all skip the step; resumed, the run ends with the bits of one that wasn't stopped",
)
def test_four_disturbed_ranks_go_on_to_the_bits_of_undisturbed_ones(train_config: TrainConfig, tmp_path: Path) -> None:
    save_config(replace(train_config, batch_size=2), tmp_path / "config.yaml")
    command = [sys.executable, disturbed_ranks.__file__, str(tmp_path / "config.yaml"), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    well, stopped = [0] * 4, [128 + signal.SIGTERM] * 4
    ended = json.loads((tmp_path / "ended.json").read_text())
    killed = [[4, 4, -signal.SIGKILL, 4], well]
    assert ended == {"undisturbed": [well], "killed": killed, "stopped": [stopped, well]}, done.stderr[-3000:]
    assert "rank 2 of 4 died or is out of reach" in done.stderr
    assert read_log(tmp_path / "undisturbed" / "log.jsonl")[-1]["nonfinite_steps"] == 1
    for name in ("killed", "stopped"):
        assert_same_run(tmp_path / "undisturbed", tmp_path / name)


@pytest.mark.processes
@pytest.mark.fault("`kill -9` for one rank under torchrun --max-restarts", "all start anew and end with the same bits")
def test_what_torchrun_starts_anew_goes_on(train_config: TrainConfig, tmp_path: Path) -> None:
    config = replace(train_config, steps=4, batch_size=2)
    launch(config, tmp_path / "undisturbed.yaml")
    disturbed, script = beside(config, "disturbed"), [trained_ranks.__file__]
    said = launch(disturbed, tmp_path / "run.yaml", "--max-restarts", "1", script=script, CI2V_DIE="1 3")
    assert "exitcode: -9" in said
    assert_same_run(config.output, disturbed.output)
