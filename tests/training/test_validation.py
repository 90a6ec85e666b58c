"""The validation loss: what it is, that only the weights change it, that it changes no training, and what it costs."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from runs import beside, last_tensors, launch, train_until

from contrastive_i2v.errors import InputError
from contrastive_i2v.randomness import seeded
from contrastive_i2v.training.config import LossConfig, TrainConfig, ValidationConfig
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.trainer import Trainer


@pytest.fixture
def config(train_config: TrainConfig, clips: Path) -> TrainConfig:
    data = replace(train_config.data, validation_path=clips / "train")  # six clips
    return replace(train_config, data=data, steps=4, validation=ValidationConfig(every=2, clips=5, timesteps=3))


def validation_rows(config: TrainConfig) -> list[dict[str, float]]:
    return [row for row in read_log(config.output / "log.jsonl") if "validation/mse" in row]


def test_it_is_the_noise_loss_at_fixed_timesteps_and_noise_in_float64(config: TrainConfig) -> None:
    trainer = Trainer(replace(config, ema_decay=0.0))
    assert trainer.validation is not None
    found = trainer.validation.make(0)
    network = copy.deepcopy(trainer.system.network).double()
    errors = torch.zeros(3, 5, dtype=torch.float64)
    rows = [(batch, i, name) for batch, names, _ in trainer.validation.mine for i, name in enumerate(names)]
    for column, (batch, i, name) in enumerate(rows):
        codec = trainer.system.codec
        given, clean = (codec.sample(batch.raw[i : i + 1, place : place + 1]) for place in (0, 1))
        clean = codec.normalize(clean).double()
        noise = torch.randn(clean.shape[1:], generator=seeded(*name)).double()
        text = {key: value[i : i + 1] for key, value in batch.text.items()}
        condition = trainer.system.condition(given, text, fps=batch.fps[i : i + 1])
        condition = {key: value.double() if value.is_floating_point() else value for key, value in condition.items()}
        for line, timestep in enumerate((166, 500, 833)):  # the middles of three thirds of 1000
            abar = trainer.loss.schedule.alphas_cumprod[timestep].double()
            noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
            with torch.no_grad():
                prediction = network(noisy, torch.tensor([timestep]), **condition)
            errors[line, column] = (prediction - noise).square().mean()
    assert found["validation/mse"] == pytest.approx(float(errors.mean()), rel=1e-5)
    by_timestep = {f"validation/mse_at_{t}": float(errors[line].mean()) for line, t in enumerate((166, 500, 833))}
    assert {name: found[name] for name in by_timestep} == pytest.approx(by_timestep, rel=1e-5)


def test_noise_belongs_to_the_clip_and_candidates_to_the_batch(config: TrainConfig) -> None:
    loss = LossConfig(gate="none", flow_contrast_weight=0.05)
    found = []
    for size in (2, 5):
        trainer = Trainer(replace(beside(config, f"batch-{size}"), batch_size=size, loss=loss))
        assert trainer.validation is not None
        found.append(trainer.validation.make(0))
    few, many = found
    names = {name for name in few if name.startswith("validation/mse")}
    assert {name: few[name] for name in names} == pytest.approx({name: many[name] for name in names}, rel=1e-5)
    assert few["validation/contrastive/target"] < many["validation/contrastive/target"]  # fewer negatives
    assert "validation/flow_contrast" in few


def test_the_training_is_the_same_with_it_and_resumes_with_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(config).run()
    without = beside(config, "without", validation=ValidationConfig(every=0))
    Trainer(without).run()
    other = last_tensors(without)
    for group, tensors in last_tensors(config).items():
        assert all(torch.equal(tensor, other[group][name]) for name, tensor in tensors.items())

    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert [row["step"] for row in validation_rows(config)] == [2, 4]
    assert validation_rows(broken) == validation_rows(config)


def test_it_has_the_averaged_weights_and_costs_what_it_says(config: TrainConfig) -> None:
    trainer = Trainer(config)
    trainer.run()
    assert trainer.validation is not None
    windows = []
    handle = trainer.system.network.register_forward_pre_hook(lambda module, inputs: windows.append(len(inputs[0])))
    averaged = trainer.state.with_average(partial(trainer.validation.make, 4))
    handle.remove()
    assert {"step": 4, **averaged} == validation_rows(config)[-1]
    assert trainer.validation.make(4)["validation/mse"] != averaged["validation/mse"]
    assert sum(windows) == 5 * 3


def test_what_it_is_not_measured_for(config: TrainConfig, tmp_path: Path) -> None:
    never = replace(config, validation=ValidationConfig(every=5))
    assert Trainer(never).validation is None
    (tmp_path / "held-out").mkdir()
    (tmp_path / "held-out" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "held-out" / "a.txt").write_text("a ball")
    data = replace(config.data, validation_path=tmp_path / "held-out")
    with pytest.raises(InputError, match="held-out: gives no window for the validation loss.*--validation.every 0"):
        Trainer(replace(config, data=data))


@pytest.mark.processes
def test_two_processes_share_it(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, steps=2, batch_size=2, ema_decay=0.0)  # three batches: the second process repeats one
    launch(config, tmp_path / "config.yaml")
    alone = Trainer(replace(beside(config, "alone"), model=str(config.output / "model")))
    assert alone.validation is not None
    shared = {name: value for name, value in validation_rows(config)[-1].items() if name != "step"}
    assert shared == pytest.approx(alone.validation.make(2), rel=1e-5)
