"""Training knows a model through the wall alone: options, parts that stay frozen, windows of several frames."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from runs import assert_same_run, beside, last_tensors, train_until
from safetensors.torch import save_file
from torch import Tensor, nn

from contrastive_i2v import models
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2Pix, InstructPix2PixConfig
from contrastive_i2v.system import Window
from contrastive_i2v.training.batches import build_loader
from contrastive_i2v.training.checkpoint import list_checkpoints, load_checkpoint
from contrastive_i2v.training.config import LossConfig, OwnSamplesConfig, TrainConfig, load_config
from contrastive_i2v.training.inputs import Inputs, loss_rows
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.trainer import Trainer


def test_past_frames_an_anchor_and_noise_train_and_resume_bitwise(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = InstructPix2PixConfig(past_frames=3, anchor=True, noise_level=True)
    config = replace(train_config, system=system, condition_noise=0.5, conditioning_dropout=0.2, steps=6)
    folder = Trainer(config).run()
    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    assert load_config(TrainConfig, config.output / "config.yaml") == config

    trained = load_system(folder, device="cpu")
    assert trained.config == replace(system, max_stride=1) and trained.size == (16, 16) and trained.fps == 5.0
    assert isinstance(trained, InstructPix2Pix)
    weights = trained.unet.conv_in.weight.detach()  # noisy, newest, two older ones with their masks, anchor
    assert weights.shape[1] == 8 + 2 * 5 + 4
    assert all(float(part.abs().max()) > 0 for part in weights.split([4, 4, 4, 1, 4, 1, 4], dim=1))
    assert bool(trained.unet.class_embedding.linear_2.weight.any())


def test_strides_and_the_frame_ahead_train_and_resume_bitwise(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = replace(train_config.data.frames, offset_std=0.0, offsets=(1, 2))
    data = replace(train_config.data, frames=frames)
    system = InstructPix2PixConfig(past_frames=2, max_stride=2)
    own = OwnSamplesConfig(condition_share=0.25, error_share=0.5, depth=2, clips=2, refresh=2, steps=1)
    config = replace(train_config, system=system, data=data, own_samples=own, steps=6)
    folder = Trainer(config).run()
    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)

    trained = load_system(folder, device="cpu")
    assert isinstance(trained, InstructPix2Pix) and trained.max_stride == 2 and trained.window.ahead
    weights = trained.unet.conv_in.weight.detach()  # noisy, newest, the one before with its mask, ahead with its mask
    assert all(float(part.abs().max()) > 0 for part in weights.split([4, 4, 4, 1, 4, 1], dim=1))
    assert bool(trained.unet.class_embedding.linear_2.weight.any())
    far = replace(data, frames=replace(frames, offsets=(1, 3)))
    with pytest.raises(InputError, match="is a stride of 3 frames, and the model was trained with 1 to 2"):
        Trainer(replace(config, output=config.output.with_name("far"), data=far, own_samples=OwnSamplesConfig()))


def test_half_of_the_examples_know_the_frame_ahead(
    train_config: TrainConfig,
) -> None:
    frames = replace(train_config.data.frames, offset_std=0.0, offsets=(1, 2), windows_per_clip=8)
    system = InstructPix2PixConfig(max_stride=2)
    config = replace(train_config, system=system, data=replace(train_config.data, frames=frames), batch_size=8)
    trainer = Trainer(replace(config, conditioning_dropout=0.0))
    codec = trainer.system.codec
    known: dict[float, list[bool]] = {1.0: [], 2.0: []}
    for step in range(8):
        batch = next(iter(build_loader(trainer.dataset, config, trainer.accelerator, step=step)))
        inputs = trainer._inputs(batch, step)
        newest, ahead, mask = inputs.condition["image_latents"].split([4, 4, 1], dim=1)
        means = codec.sample(batch.raw)  # [8, given, generated, ahead]
        assert torch.equal(newest, means[:, 0]) and torch.equal(inputs.source_latents, codec.normalize(means[:, 0]))
        there = mask[:, 0, 0, 0].bool()
        assert torch.equal(ahead, means[:, 2] * mask) and not (there & ~batch.present[:, 2]).any()
        assert torch.equal(inputs.condition["stride"], trainer.system.fps / batch.fps)
        held = batch.present[:, 2]  # the clip goes on so far
        for stride, one in zip(inputs.condition["stride"][held].tolist(), there[held].tolist(), strict=True):
            known[stride].append(one)
    assert all(len(ones) > 5 and 0.2 < sum(ones) / len(ones) < 0.8 for ones in known.values())


def test_what_a_system_is_told_in_training(train_config: TrainConfig) -> None:
    system = InstructPix2PixConfig(past_frames=3, anchor=True, noise_level=True)
    config = replace(train_config, system=system, condition_noise=0.5, conditioning_dropout=0.0, batch_size=8)
    trainer = Trainer(config)
    batch = next(iter(build_loader(trainer.dataset, config, trainer.accelerator, step=0)))
    inputs = trainer._inputs(batch, 0)
    codec, level = trainer.system.codec, inputs.condition["noise_level"]
    assert level.shape == (8,) and len(set(level.tolist())) == 8
    assert float(level.min()) >= 0 and float(level.max()) <= 0.5
    means = codec.sample(batch.raw)  # [8, anchor + 3 + 1, 4, 8, 8]
    seen = inputs.condition["image_latents"]
    for start, place in ((0, 3), (4, 2), (9, 1), (14, 0)):  # newest, older, oldest, anchor
        added = codec.normalize(seen[:, start : start + 4] - means[:, place])
        strength = added.flatten(1).std(dim=1)
        torch.testing.assert_close(strength, level, rtol=0.25, atol=0.01)  # of 256 normal numbers
    assert not bool(batch.present.all())  # some windows begin before their clip
    for start, place in ((8, 2), (13, 1)):
        mask = seen[:, start]
        assert torch.equal(mask, batch.present[:, place].float().view(-1, 1, 1).expand_as(mask))


class AttentionAlone(InstructPix2Pix):
    """Only the attention layers are trained."""

    def trainable(self) -> list[nn.Parameter]:
        return [value for name, value in self.network.named_parameters() if ".attn" in name]


def test_what_is_not_trained_stays_and_costs_no_optimizer_state(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.SYSTEMS, "instruct-pix2pix", AttentionAlone)
    config = replace(train_config, steps=6)
    trainer = Trainer(config)
    network = trainer.system.network
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    moving = {name for name in start if ".attn" in name}
    assert 0 < len(moving) < len(start)
    assert {name for name, value in network.named_parameters() if value.requires_grad} == moving
    trainer.run()
    assert all(value.grad is None for name, value in network.named_parameters() if name not in moving)

    saved = last_tensors(config)
    assert saved["network"].keys() == saved["ema"].keys() == start.keys()  # checkpoints are whole
    for group in ("network", "ema"):
        still = {name for name, value in saved[group].items() if torch.equal(value, start[name])}
        assert still == start.keys() - moving
    assert {name.rpartition(".")[0] for name in saved["optimizer"]} == moving

    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)


class FrameByFrame(nn.Module):
    """A network of windows: the UNet at each generated frame."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, image_latents: Tensor, prompt_embeds: Tensor) -> Tensor:
        size, count = noisy.shape[:2]
        image, time, text = (value.repeat_interleave(count, 0) for value in (image_latents, timesteps, prompt_embeds))
        inputs = torch.cat([noisy.flatten(0, 1), image], dim=1)
        prediction: Tensor = self.unet(inputs, time, encoder_hidden_states=text, return_dict=False)[0]
        return prediction.unflatten(0, (size, count))


class Windows(InstructPix2Pix):
    """One given frame, and three that are generated together."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.network = FrameByFrame(self.unet)  # type: ignore[assignment]
        self.window = Window(4)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SYSTEMS, "instruct-pix2pix", Windows)


def made(size: int, count: int) -> Inputs:
    def latents(*shape: int) -> Tensor:
        return torch.randn(*shape, 4, 2, 2)

    return Inputs(
        noisy_latents=latents(size, count),
        timesteps=torch.randint(1000, (size,)),
        clean_latents=latents(size, count),
        noise=latents(size, count),
        condition={},
        has_condition=torch.rand(size) < 0.5,
        source_latents=latents(size),
        groups=torch.arange(size) // 2,
        has_text=torch.ones(size, dtype=torch.bool),
    )


def test_a_row_a_generated_frame() -> None:
    inputs = made(3, 2)
    rows = loss_rows(inputs, "frame")
    places = [(window, frame) for window in range(3) for frame in range(2)]
    assert len(rows.timesteps) == len(rows.clean_latents) == len(rows.groups) == 6
    for row, (window, frame) in enumerate(places):
        for name in ("noisy_latents", "clean_latents", "noise"):
            assert torch.equal(getattr(rows, name)[row], getattr(inputs, name)[window, frame]), name
        for name in ("timesteps", "has_condition", "groups"):
            assert getattr(rows, name)[row] == getattr(inputs, name)[window], name
        assert torch.equal(rows.banks["target"][row], inputs.clean_latents[window, frame])
        assert torch.equal(rows.banks["input"][row], inputs.source_latents[window])


def test_a_row_a_clip() -> None:
    inputs = made(3, 2)
    rows = loss_rows(inputs, "clip")
    for name in ("noisy_latents", "clean_latents", "noise", "timesteps", "has_condition", "groups"):
        assert torch.equal(getattr(rows, name), getattr(inputs, name)), name
    assert torch.equal(rows.banks["target"], inputs.clean_latents)
    source = rows.banks["input"]
    assert source.shape == (3, 2, 4, 2, 2)
    assert all(torch.equal(source[i, frame], inputs.source_latents[i]) for i in range(3) for frame in range(2))


def cross_entropy_by_hand(
    x0: Tensor, banks: Tensor, groups: list[int], bank_groups: list[int], temperature: float
) -> float:
    """Mean over the queries of -log softmax at the own row, rows of the same video left out; float64."""
    queries, rows = ([row / row.norm() for row in part.double().flatten(1)] for part in (x0, banks))
    total = 0.0
    for i, query in enumerate(queries):
        logits = {
            j: float(query @ row) / temperature for j, row in enumerate(rows) if j == i or bank_groups[j] != groups[i]
        }
        total += math.log(sum(math.exp(value) for value in logits.values())) - logits[i]
    return total / len(queries)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("rows", ["frame", "clip"])
def test_windows_are_contrasted_with_a_memory(train_config: TrainConfig, rows: Literal["frame", "clip"]) -> None:
    loss = LossConfig(rows=rows, memory_bank=30, gate="none", temperature=0.5)
    trainer = Trainer(replace(train_config, loss=loss))
    per_step = 12 if rows == "frame" else 4
    assert trainer.candidates.memory["target"].queue.shape == ((30, 4, 8, 8) if rows == "frame" else (30, 3, 4, 8, 8))
    abar = trainer.loss.schedule.alphas_cumprod
    assert abar is not None
    past = torch.zeros(0, *trainer.candidates.memory["target"].queue.shape[1:])
    past_groups: list[int] = []
    batches = iter(build_loader(trainer.dataset, trainer.config, trainer.accelerator, step=0))
    for micro_batch in range(3):
        inputs = trainer._inputs(next(batches), micro_batch)
        assert inputs.clean_latents.shape == (4, 3, 4, 8, 8)
        generator = torch.Generator().manual_seed(micro_batch)
        prediction = torch.randn(inputs.noise.shape, generator=generator).requires_grad_()
        value, figures = trainer._loss(prediction, inputs)
        level = abar[inputs.timesteps].view(-1, 1, 1, 1, 1)
        x0 = (inputs.noisy_latents - (1 - level).sqrt() * prediction.detach()) / level.sqrt()
        targets, groups = inputs.clean_latents, inputs.groups.tolist()
        if rows == "frame":
            x0, targets = x0.flatten(0, 1), targets.flatten(0, 1)
            groups = [group for group in groups for _ in range(3)]
        assert len(targets) == per_step
        targets = targets.bfloat16().float()  # a memory rounds its batch alike
        expected = cross_entropy_by_hand(x0, torch.cat([targets, past]), groups, groups + past_groups, 0.5)
        mse = (prediction.detach() - inputs.noise).square().mean()
        assert float(figures["contrastive/target"]) == pytest.approx(expected, rel=1e-4)
        assert float(figures["mse"]) == pytest.approx(float(mse), rel=1e-5)
        assert float(value.detach()) == pytest.approx(float(mse) + 0.2 * expected, rel=1e-4)
        value.backward()  # type: ignore[no-untyped-call]
        assert prediction.grad is not None and prediction.grad.shape == (4, 3, 4, 8, 8)
        trainer.candidates.remember()
        past = torch.cat([past, targets])[-30:]
        past_groups = [*past_groups, *groups][-30:]


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("rows", ["frame", "clip"])
def test_windows_train_and_resume_bitwise(
    train_config: TrainConfig, rows: Literal["frame", "clip"], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = LossConfig(rows=rows, memory_bank=14, input_weight=0.1)
    config = replace(train_config, loss=loss, condition_noise=0.3, steps=5)
    Trainer(config).run()
    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    assert last_tensors(config)["memory_bank"]["target.queue"].shape[0] == 14
    assert read_log(config.output / "log.jsonl")[-1]["contrastive/target"] > 0


def test_an_earlier_versions_checkpoint_is_refused_by_name(train_config: TrainConfig) -> None:
    config = replace(train_config, steps=2)
    Trainer(config).run()
    checkpoint = list_checkpoints(config.output / "checkpoints")[-1]
    tensors, _ = load_checkpoint(checkpoint)
    (checkpoint / "network.safetensors").unlink()
    unet = {name.removeprefix("unet."): value for name, value in tensors["network"].items()}
    save_file(unet, checkpoint / "unet.safetensors")
    (checkpoint / "state.json").write_text('{"step": 2, "nonfinite_steps": 0, "groups": []}')  # no hashes either
    before = {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(InputError, match="step-00000002: an earlier version wrote.*new --output") as refused:
        Trainer(replace(config, steps=2, resume=True))
    assert "\n" not in str(refused.value)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_earlier_versions_config_is_refused_by_name(train_config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  path: clips\n  pairs:\n    frame_rate: 5.0\n    pairs_per_clip: 2\n")
    with pytest.raises(InputError, match=r"config\.yaml: .*pairs.*another version") as refused:
        load_config(TrainConfig, path)
    assert "\n" not in str(refused.value)
    config = replace(train_config, steps=2)
    Trainer(config).run()
    (config.output / "config.yaml").write_text(path.read_text())
    with pytest.raises(InputError, match=r"config\.yaml: .*pairs"):
        Trainer(replace(config, resume=True))
