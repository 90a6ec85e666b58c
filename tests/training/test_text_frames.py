"""The projection of captions is trained, averaged, resumed and saved with the network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import assert_same_run, beside, last_tensors, launch, train_until
from safetensors.torch import load_file

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.training.config import LossConfig, TrainConfig
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.text_frames import TextFrames
from contrastive_i2v.training.trainer import Trainer


@pytest.fixture
def config(train_config: TrainConfig) -> TrainConfig:
    return replace(train_config, loss=LossConfig(target_weight=0.0, text_weight=0.5), log_every=1)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_projection_moves_resumes_bitwise_and_is_written(
    config: TrainConfig, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, ema_decay=decay, gradient_accumulation=2)
    trainer = Trainer(config)
    assert trainer.text_frames is not None
    start = {name: value.clone() for name, value in trainer.text_frames.loss.state_dict().items()}
    folder = trainer.run()
    broken = beside(config, "broken")
    train_until(broken, 5, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    last = trainer.text_frames.loss.state_dict()
    assert not any(torch.equal(last[name], start[name]) for name in start)
    saved, ema = load_file(folder / "text_frames.safetensors"), trainer.text_frames.ema
    expected = dict(zip(start, ema.shadow_params if ema else last.values(), strict=True))
    assert saved.keys() == start.keys() and all(torch.equal(saved[name], expected[name]) for name in saved)
    about = json.loads((folder / "text_frames.json").read_text())
    assert about == {"features": 16, "latent_shape": [4, 8, 8], "temperature": 0.07}
    again = load_file(broken.output / "model" / "text_frames.safetensors")
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    load_system(folder)  # it is in nobody's way
    row = read_log(config.output / "log.jsonl")[-1]
    assert row["loss"] == pytest.approx(row["mse"] + 0.5 * row["contrastive/text"], rel=1e-5)


def test_a_step_without_a_finite_gradient_leaves_the_projection(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(replace(config, steps=3, max_nonfinite_steps=9))
    assert trainer.text_frames is not None
    start = {name: value.clone() for name, value in trainer.text_frames.loss.state_dict().items()}
    original = TextFrames.__call__

    def poisoned(self: TextFrames, prediction: torch.Tensor, inputs: object) -> object:
        out = original(self, prediction, inputs)  # type: ignore[arg-type]
        return out._replace(loss=out.loss * float("nan"))

    monkeypatch.setattr(TextFrames, "__call__", poisoned)
    trainer.run()
    assert all(torch.equal(start[name], value) for name, value in trainer.text_frames.loss.state_dict().items())
    assert read_log(config.output / "log.jsonl")[-1]["nonfinite_steps"] == 3


@pytest.mark.processes
def test_two_processes_have_one_projection_of_both_batches(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, steps=2, batch_size=2, checkpoint_every=1)
    launch(config, tmp_path / "two.yaml")
    first = last_tensors(config)["text_frames"]
    shutil.rmtree(sorted((config.output / "checkpoints").iterdir())[-1])
    launch(replace(config, resume=True), tmp_path / "again.yaml")
    assert all(torch.equal(value, last_tensors(config)["text_frames"][name]) for name, value in first.items())
    one = beside(config, "one")
    Trainer(one).run()
    name = "optimizer.0.exp_avg"
    assert not torch.equal(first[name], last_tensors(one)["text_frames"][name])  # the other process's gradient is in it


def test_where_there_can_be_no_text_frames(config: TrainConfig) -> None:
    trainer = Trainer(config)
    with pytest.raises(InputError, match="loss.text_weight: there is none with mixed_precision=fp16"):
        TextFrames(replace(config, mixed_precision="fp16"), trainer.system, trainer.accelerator)
