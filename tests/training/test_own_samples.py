"""Rollouts of the model itself as training data: what they hold, where they go, what they cost; and exact resume."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_run, beside, last_tensors, launch, train_until
from torch import Tensor

from contrastive_i2v.data.examples import Example
from contrastive_i2v.errors import InputError
from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout
from contrastive_i2v.training import own_samples as own_samples_module
from contrastive_i2v.training.checkpoint import list_checkpoints, load_checkpoint
from contrastive_i2v.training.config import LossConfig, OwnSamplesConfig, TrainConfig
from contrastive_i2v.training.inputs import Inputs
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.trainer import Trainer

OWN = OwnSamplesConfig(
    condition_share=0.25, depth=3, clips=4, refresh=3, steps=2, guidance_scale=1.0, image_guidance_scale=1.0
)


@pytest.fixture
def config(train_config: TrainConfig) -> TrainConfig:
    frames = replace(train_config.data.frames, offset_std=0.0)
    return replace(train_config, own_samples=OWN, data=replace(train_config.data, frames=frames), log_every=1)


def everything(config: TrainConfig) -> TrainConfig:
    """Every option of own samples and of the other terms at once."""
    loss = LossConfig(
        own_weight=0.3,
        flow_contrast_weight=0.05,
        dispersive_weight=0.5,
        text_weight=0.2,
        memory_bank=8,
        input_weight=0.1,
    )
    own = replace(OWN, error_share=0.5, contrast_share=0.25)
    system = InstructPix2PixConfig(past_frames=2, anchor=True, noise_level=True)
    return replace(config, loss=loss, own_samples=own, system=system, condition_noise=0.3, gradient_accumulation=2)


def refreshed(config: TrainConfig) -> Trainer:
    trainer = Trainer(config)
    assert trainer.own_samples is not None
    trainer.system.network.eval()
    trainer.own_samples.refresh(0)
    return trainer


def test_everything_on_resumes_bitwise(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = everything(config)
    Trainer(config).run()
    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)  # between refreshes, past a checkpoint
    train_until(replace(broken, resume=True), 6, monkeypatch)  # right at a refresh and a checkpoint
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    assert {"own_samples", "reference", "memory_bank", "text_frames"} < last_tensors(config).keys()
    row = read_log(config.output / "log.jsonl")[-1]
    assert {"own_samples/real", "own_samples/own", "flow_contrast", "dispersive", "units"} < row.keys()
    expected = row["mse"] + 0.2 * row["contrastive/target"] + 0.1 * row["contrastive/input"]
    expected += -0.05 * row["flow_contrast"] + 0.5 * row["dispersive"]
    expected += 0.2 * row["contrastive/text"]
    expected += 0.3 * (row["own_samples/real"] + row["own_samples/own"])
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_reference_is_the_start(config: TrainConfig) -> None:
    config = everything(config)
    start = {name: value.clone() for name, value in Trainer(config).system.network.state_dict().items()}
    shutil.rmtree(config.output)
    Trainer(config).run()
    saved = last_tensors(config)
    assert saved["reference"].keys() == start.keys()
    assert all(torch.equal(saved["reference"][name], value) for name, value in start.items())
    assert not all(torch.equal(saved["network"][name], value) for name, value in start.items())


def test_own_samples_change_nothing_where_they_are_off(config: TrainConfig) -> None:
    Trainer(replace(config, own_samples=OwnSamplesConfig())).run()
    Trainer(beside(config, "own")).run()
    plain, own = (read_log(config.output.with_name(name) / "log.jsonl") for name in ("run", "own"))
    assert [row["units"] for row in plain] == [float(step) for step in range(1, 9)]
    assert plain[0]["mse"] != own[0]["mse"]


def test_a_record_is_the_window_of_a_rollout(config: TrainConfig) -> None:
    """From a clip's first frame the bank holds what `rollout` makes, frame by frame, and the frames that are true."""
    trainer = refreshed(config)
    bank, system, dataset = trainer.own_samples, trainer.system, trainer.dataset
    assert bank is not None and bank.records is not None
    records = bank.records
    assert records.numbers.tolist() == [0, 1, 2] * 4
    for first in range(0, 12, 3):
        source = dataset.examples[int(records.sources[first])]
        ahead = [source, *source.following]
        assert len({one.clip for one in ahead}) == 1 and ahead[0].rows[1:] == ahead[1].rows[:1]
        true = system.codec.sample(dataset.read(source).raw[:1])
        assert torch.equal(records.given[first], true)  # true frames, then own ones
        for row in (first + 1, first + 2):
            assert torch.equal(records.given[row, 0], system.codec.denormalize(records.generated[row - 1, 0]))
        for row, one in enumerate(ahead[:3], start=first):
            assert torch.equal(bank.truth.raw[row], dataset.read(one).raw)
            clean = system.codec.normalize(system.codec.sample(dataset.read(one).raw[1]))
            torch.testing.assert_close(bank.errors[row], records.generated[row, 0] - clean)
    sampler = Sampler(steps=2, guidance_scale=1.0, image_guidance_scale=1.0)
    seeds = torch.randint(2**62, (4,), generator=_after_starts(bank))
    text = {name: value[:1] for name, value in bank.truth.text.items()}
    fps = float(bank.truth.fps[0])
    made = rollout(system, records.given[0], text, frames=4, seeds=[int(seeds[0])], sampler=sampler, fps=fps)
    torch.testing.assert_close(made[0, 1:], records.generated[:3, 0], rtol=1e-4, atol=1e-5)


def _after_starts(bank: Any) -> torch.Generator:
    """The refresh's generator after it drew the windows."""
    generator: torch.Generator = own_samples_module.seeded(bank.seed, "own samples", 0)
    bank.dataset.draw_rollouts(bank.config.clips, bank.config.depth, generator)
    return generator


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_rows_have_own_conditions_and_true_targets(config: TrainConfig, noise: float) -> None:
    """A quarter of a batch of 4: its last row. The others, and every draw, are as without own samples."""
    trainer = refreshed(replace(config, condition_noise=noise, conditioning_dropout=0.0))
    bank = trainer.own_samples
    assert bank is not None and bank.records is not None
    batch = _batch(trainer)
    inputs = trainer._inputs(batch, 0)
    trainer.own_samples = None
    plain = trainer._inputs(batch, 0)
    assert torch.equal(inputs.noise, plain.noise) and torch.equal(inputs.timesteps, plain.timesteps)
    images, before = inputs.condition["image_latents"], plain.condition["image_latents"]
    assert torch.equal(images[:3], before[:3]) and not torch.equal(images[3], before[3])
    (row,) = [n for n, given in enumerate(bank.records.given) if torch.equal(given[0], images[3])]  # without noise
    assert bank.records.numbers[row] > 0
    assert torch.equal(inputs.groups[3], bank.truth.group[row])
    assert torch.equal(inputs.condition["prompt_embeds"][3], bank.truth.text["prompt_embeds"][row])
    codec = trainer.system.codec
    spread = (inputs.clean_latents[3, 0] - codec.normalize(codec.sample(bank.truth.raw[row, 1]))).abs().mean()
    own = (inputs.clean_latents[3, 0] - bank.records.generated[row, 0]).abs().mean()
    assert spread < own  # a posterior sample of the true frame
    assert torch.equal(inputs.source_latents[3], codec.normalize(images[3]))


def test_errors_go_to_true_conditions_but_not_to_the_anchor(config: TrainConfig) -> None:
    own = replace(OWN, condition_share=0.0, error_share=1.0, depth=1)
    system = InstructPix2PixConfig(past_frames=2, anchor=True)
    trainer = refreshed(replace(config, own_samples=own, system=system, conditioning_dropout=0.0))
    bank = trainer.own_samples
    assert bank is not None
    batch = _batch(trainer)
    given = trainer._inputs(batch, 0).condition["image_latents"]  # last, the one before and its mask, the anchor
    trainer.own_samples = None
    plain = trainer._inputs(batch, 0).condition["image_latents"]
    errors = bank.errors / trainer.system.codec.scale
    for row in range(4):
        newest, older = (given[row] - plain[row]).split([4, 9])
        torch.testing.assert_close(newest, older[:4])
        assert older[4:].abs().max() == 0
        assert any(torch.allclose(newest, error, atol=1e-5) for error in errors)


def _batch(trainer: Trainer) -> Example:
    from torch.utils.data import default_collate

    batch: Example = default_collate([trainer.dataset[n] for n in range(4)])
    return batch


def test_own_samples_with_nan_are_left_out_and_counted(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    original = own_samples_module.roll_windows

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        rolled = original(*args, **kwargs)
        rolled[1].generated[0, 0, 0, 0, 0] = float("nan")
        rolled[2].given[0, 0, 0, 0, 0] = float("inf")
        return rolled

    monkeypatch.setattr(own_samples_module, "roll_windows", poisoned)
    trainer = Trainer(config)
    trainer.run()
    assert trainer.own_samples is not None and trainer.own_samples.records is not None
    assert [len(part) for part in trainer.own_samples.records] == [10] * 4
    assert all(part.isfinite().all() for part in trainer.own_samples.records[2:])
    rows = read_log(config.output / "log.jsonl")
    assert [row["own_samples/nonfinite"] for row in rows] == [2, 2, 2, 4, 4, 4, 6, 6]
    assert rows[-1]["nonfinite_steps"] == 0


def test_rollouts_that_are_all_nan_leave_the_batches_as_they_are(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*args: Any, **kwargs: Any) -> Any:
        return [window._replace(generated=window.generated * float("nan")) for window in original(*args, **kwargs)]

    original = own_samples_module.roll_windows
    monkeypatch.setattr(own_samples_module, "roll_windows", poisoned)
    Trainer(config).run()
    plain = beside(config, "plain", own_samples=OwnSamplesConfig())
    Trainer(plain).run()
    poisoned_run, without = (last_tensors(one)["network"] for one in (config, plain))
    assert all(torch.equal(poisoned_run[name], without[name]) for name in without)
    assert read_log(config.output / "log.jsonl")[-1]["own_samples/nonfinite"] == 36


def test_equal_compute_pays_for_rollouts_and_the_reference(config: TrainConfig) -> None:
    own = replace(OWN, contrast_share=0.25)
    contrast = replace(config, own_samples=own, loss=LossConfig(own_weight=0.3), steps=20, equal_compute=True)
    trainer = Trainer(contrast)
    step = 1 + 0.5 * (1 + 0.6)  # two of four rows have an own sample; the reference sees both halves
    refresh = 0.3 * 4 * 3 * 2 / 4  # clips, depth, steps, a batch
    spent = [steps * step + -(-steps // 3) * refresh for steps in range(12)]
    assert trainer.steps == max(steps for steps in range(12) if spent[steps] <= 20) == 8
    trainer.run()
    rows = read_log(contrast.output / "log.jsonl")
    assert [row["units"] for row in rows] == pytest.approx(spent[1:9])
    assert rows[-1]["learning_rate"] < 0.2e-3  # the schedule ends with the budget
    assert (contrast.output / "model" / "system.json").exists()

    positive = replace(contrast, loss=replace(contrast.loss, own_positive_only=True), output=config.output / "b")
    assert Trainer(positive).compute.step == 1 + 0.5 * 0.3
    plain = replace(config, own_samples=OwnSamplesConfig(), equal_compute=True, output=config.output / "c")
    assert Trainer(plain).steps == plain.steps
    dear = replace(own, clips=400)
    with pytest.raises(InputError, match="steps=20 with equal_compute: one step and the first rollouts cost 182 units"):
        Trainer(replace(contrast, own_samples=dear, output=config.output / "d"))


def test_own_samples_that_cannot_be_are_refused(config: TrainConfig) -> None:
    def refuse(says: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=says):
            Trainer(replace(config, **changes))

    refuse("depth=9: no clip goes on for so many windows; expected at most 4", own_samples=replace(OWN, depth=9))
    refuse("loss.own_weight=0.3: no row", loss=LossConfig(own_weight=0.3), own_samples=OwnSamplesConfig())
    refuse("contrast_share: rows for loss.own_weight, which is 0", own_samples=replace(OWN, contrast_share=0.5))
    refuse("condition_share=0.1 is no row of a batch of 4", own_samples=replace(OWN, condition_share=0.1))
    refuse("dispersive_layer=nowhere", loss=LossConfig(dispersive_weight=0.5, dispersive_layer="nowhere"))
    for says, options in {
        "condition_share: expected 0 to 1, got 2": {"condition_share": 2},
        "more than a batch": {"condition_share": 0.6, "contrast_share": 0.6},
        "needs own_samples.depth 2 or more": {"condition_share": 0.5, "depth": 1},
        "no share of a batch uses them": {"depth": 2},
        "refresh: expected at least 1": {"condition_share": 0.5, "refresh": 0},
    }.items():
        with pytest.raises(InputError, match=says):
            OwnSamplesConfig(**options)


@pytest.mark.processes
def test_two_processes_hold_the_same_records_as_one(config: TrainConfig, tmp_path: Path) -> None:
    loss = LossConfig(own_weight=0.3, text_weight=0.2)
    config = replace(config, steps=4, batch_size=2, loss=loss, own_samples=replace(OWN, condition_share=0.5))
    launch(config, tmp_path / "first.yaml")
    tensors, state = load_checkpoint(list_checkpoints(config.output / "checkpoints")[-1])

    shutil.rmtree(list_checkpoints(config.output / "checkpoints")[-1])  # as if killed after the second step
    launch(replace(config, resume=True), tmp_path / "second.yaml")
    again, state_again = load_checkpoint(list_checkpoints(config.output / "checkpoints")[-1])
    assert state_again == state
    for group, values in tensors.items():
        assert all(torch.equal(value, again[group][name]) for name, value in values.items()), group

    one = beside(config, "one", steps=1, ema_decay=0.0)  # before any step the weights are the same
    two = beside(config, "two", steps=1, ema_decay=0.0)
    Trainer(one).run()
    launch(two, tmp_path / "two.yaml")
    alone, shared = (last_tensors(run)["own_samples"] for run in (one, two))
    assert all(torch.equal(alone[name], shared[name]) for name in ("sources", "numbers", "nonfinite"))
    for name in ("given", "generated"):
        torch.testing.assert_close(alone[name], shared[name], rtol=1e-4, atol=1e-5)


def test_the_contrast_sees_the_same_noise_and_condition(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of the network, with the own samples beside the batch, and one of the reference on the same rows."""
    loss = LossConfig(own_weight=0.3)
    own_samples = replace(OWN, contrast_share=0.25)
    trainer = refreshed(replace(config, loss=loss, own_samples=own_samples, conditioning_dropout=0.0))
    assert trainer.own_contrast is not None
    inputs: Inputs = trainer._inputs(_batch(trainer), 0)
    calls: list[tuple[str, Tensor, Tensor, dict[str, Tensor]]] = []
    for name, network in (("network", trainer.state.network), ("reference", trainer.own_contrast.reference)):
        original = network.forward

        def forward(noisy: Tensor, t: Tensor, *, name: str = name, original: Any = original, **told: Tensor) -> Tensor:
            calls.append((name, noisy, t, told))
            out: Tensor = original(noisy, t, **told)
            return out

        monkeypatch.setattr(network, "forward", forward)
    prediction, extra = trainer._predict(inputs)
    (_, noisy, times, told), (_, seen, *_) = calls
    bank, images = trainer.own_samples, inputs.condition["image_latents"]
    assert bank is not None and bank.records is not None and inputs.own_samples is not None
    alone, conditioned = (
        int((bank.records.generated == own).flatten(1).all(1).nonzero()[0]) for own in inputs.own_samples
    )
    assert torch.equal(images[2], trainer.system.codec.sample(bank.truth.raw[alone, 0]))  # true
    assert torch.equal(images[3], bank.records.given[conditioned, 0]) and bank.records.numbers[conditioned] > 0
    assert [call[0] for call in calls] == ["network", "reference"] and prediction.shape[0] == 4 and len(noisy) == 6
    assert torch.equal(noisy[:4], inputs.noisy_latents) and torch.equal(seen, noisy[2:])
    own = trainer.loss.schedule.add_noise(inputs.own_samples, inputs.noise[2:], inputs.timesteps[2:])
    assert torch.equal(noisy[4:], own) and torch.equal(times[4:], times[2:4])
    assert all(torch.equal(value[4:], value[2:4]) for value in told.values())
    assert extra is not None and extra.own is not None
    assert float(extra.real) == pytest.approx(0.6931, abs=1e-3)  # at the start network and reference agree
    assert float(extra.own) == pytest.approx(0.6931, abs=1e-3)
