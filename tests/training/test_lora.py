"""LoRA in training: what moves, what is saved, that it opens again, and that a run goes on to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_run, beside, last_tensors, launch, train_until
from safetensors.torch import load_file
from torch import Tensor
from video_models import randn

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.consisti2v import ConsistI2VConfig
from contrastive_i2v.models.emu_video import EmuVideoConfig
from contrastive_i2v.models.lora import BESIDE, UNET, AdapterConfig
from contrastive_i2v.system import System
from contrastive_i2v.training.config import LossConfig, OptimizerConfig, OwnSamplesConfig, TrainConfig
from contrastive_i2v.training.trainer import Trainer

LORA = AdapterConfig(rank=2, alpha=4)
CONSISTENT = ConsistI2VConfig(frames=4, max_stride=2, start_alpha=0.6)
IMAGE = EmuVideoConfig(task="image")
VIDEO = EmuVideoConfig(task="video", frames=4, freeze_spatial=False)
FROZEN = EmuVideoConfig(task="video", frames=4)


@pytest.fixture
def config(train_config: TrainConfig) -> TrainConfig:
    """Three steps of LoRA, at a rate that shows."""
    optimizer = OptimizerConfig(learning_rate=2e-2, warmup_steps=0)
    return replace(train_config, steps=3, log_every=1, optimizer=optimizer, lora=LORA)


@pytest.fixture
def video_config(config: TrainConfig, base_folder: Path) -> TrainConfig:
    frames = FramesConfig(frame_rate=8.0, offset_std=0.0, windows_per_clip=3)
    return replace(config, model=str(base_folder), data=replace(config.data, frames=frames))


def predict(system: System, network: Any = None) -> Tensor:
    """The network's prediction at random inputs."""
    frames, width = system.window, 16
    given = randn(2, len(frames.given) + frames.anchor, 4, 8, 8, seed=2)
    text = {"prompt_embeds": randn(2, 12, width, seed=1)}
    noise = randn(*given.shape, seed=3) if system.config.kind == "consisti2v" else None
    noisy = randn(2, len(frames.generated), 4, 8, 8)
    with torch.no_grad():
        condition = system.condition(given, text, noise=noise)
        return (network or system.network)(noisy, torch.tensor([9, 700]), **condition)


def trained(config: TrainConfig) -> tuple[Trainer, Path, Tensor]:
    """A finished training, the folder of its adapter, and its network's prediction with the averaged weights."""
    trainer = Trainer(config)
    folder = trainer.run()
    return trainer, folder, trainer.state.with_average(lambda: predict(trainer.system))


def test_only_adapters_move_and_the_base_stays(config: TrainConfig) -> None:
    trainer = Trainer(config)
    network = trainer.system.network
    before = {name: value.clone() for name, value in network.named_parameters()}
    trainer.run()
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    adapters = {name for name in before if ".lora_" in name}
    assert moved == adapters == {name for name, value in network.named_parameters() if value.requires_grad}
    ends = {name.split(".lora_")[0].rpartition("attn")[2][2:] for name in adapters}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0"}
    saved = last_tensors(config)
    assert saved["network"].keys() == saved["ema"].keys() == adapters
    assert sum(value.numel() for value in saved["network"].values()) < 0.1 * sum(v.numel() for v in before.values())


def test_a_run_repeats_itself_and_resumes_bitwise(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, steps=5, gradient_accumulation=2)
    Trainer(config).run()
    broken = beside(config, "broken")
    train_until(broken, 3, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    ends = [load_file(run.output / "model" / UNET) for run in (config, broken)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("kind", ["instruct-pix2pix", "consisti2v", "emu-video", "emu-video, frozen"])
def test_an_adapter_of_every_system_opens_as_it_was_trained(
    kind: str, config: TrainConfig, video_config: TrainConfig, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a text-to-image base, so each has new modules that are trained in full and saved beside the adapters."""
    if kind == "instruct-pix2pix":
        config, new = replace(config, model=str(base_folder)), {"unet.conv_in"}
    elif kind == "consisti2v":
        config, new = replace(video_config, system=CONSISTENT), {"temporal", "unet.class_embedding"}
    else:
        image = Trainer(replace(video_config, system=IMAGE, steps=1, lora=AdapterConfig())).run()
        system = FROZEN if kind.endswith("frozen") else VIDEO
        config, new = beside(video_config, "video", system=system, model=str(image)), {"temporal"}
    trainer, folder, expected = trained(config)
    opened = load_system(folder, device="cpu")
    torch.testing.assert_close(predict(opened), expected, rtol=1e-4, atol=1e-5)
    base = load_system(config.model, config.system, device="cpu")
    assert (predict(base) - expected).abs().max() > 1e-3
    halves = load_system(f"{config.model}?lora={folder}=0.25&lora={folder}=0.75", device="cpu")
    torch.testing.assert_close(predict(halves), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict(load_system(f"{config.model}?lora={folder}=0", device="cpu")), predict(base))
    full = {name.rpartition(".")[0] for name in load_file(folder / BESIDE)}
    assert {next(module for module in new if name.startswith(module)) for name in full} == new
    assert opened.config == trainer.system.config and opened.sampler == trainer.system.sampler
    assert (opened.size, opened.fps) == (trainer.system.size, trainer.system.fps)

    broken = beside(config, "broken")
    train_until(broken, 2, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    for name in [BESIDE] if kind.endswith("frozen") else [UNET, BESIDE]:
        first, second = load_file(folder / name), load_file(broken.output / "model" / name)
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name


def test_temporal_layers_that_the_base_has_get_adapters(video_config: TrainConfig) -> None:
    whole = Trainer(replace(video_config, system=CONSISTENT, steps=1, lora=AdapterConfig())).run()
    config = beside(video_config, "adapter", system=ConsistI2VConfig(), model=str(whole))
    _, folder, expected = trained(config)
    assert all(".lora_" in name and name.startswith("temporal.") for name in load_file(folder / BESIDE))
    torch.testing.assert_close(predict(load_system(folder, device="cpu")), expected, rtol=1e-4, atol=1e-5)
    twice = load_system(f"{whole}?lora={folder}=0.75&lora={folder}=0.25", device="cpu")
    torch.testing.assert_close(predict(twice), expected, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_own_samples_and_middle_features_take_adapters(config: TrainConfig) -> None:
    own = OwnSamplesConfig(contrast_share=0.5, clips=4, depth=1, steps=1)
    loss = LossConfig(own_weight=0.3, dispersive_weight=0.1)
    config = replace(config, steps=2, own_samples=own, loss=loss)
    plain, checkpointed = (beside(config, name, gradient_checkpointing=name == "yes") for name in ("no", "yes"))
    trainer = Trainer(plain)
    assert trainer.own_contrast is not None
    assert not any(".lora_" in name for name, _ in trainer.own_contrast.reference.named_parameters())
    trainer.run()
    Trainer(checkpointed).run()
    assert_same_run(plain.output, checkpointed.output)


def test_another_base_is_named_on_resume(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = load_system(config.model, device="cpu")
    base.save(tmp_path / "base")
    config = replace(config, model=str(tmp_path / "base"))
    train_until(config, 2, monkeypatch)
    with torch.no_grad():
        next(base.network.parameters()).add_(1)
    base.save(tmp_path / "base")
    with pytest.raises(InputError, match="step-00000002: is of adapters.*other weights now"):
        Trainer(replace(config, resume=True))


def test_full_fine_tuning_goes_on_from_an_adapter(config: TrainConfig) -> None:
    _, folder, expected = trained(config)
    more = beside(config, "more", model=str(folder), lora=AdapterConfig())
    start = Trainer(more)
    torch.testing.assert_close(predict(start.system), expected, rtol=1e-4, atol=1e-5)
    assert not any(".lora_" in name for name, _ in start.system.network.named_parameters())
    with pytest.raises(InputError, match="has an adapter already.*contrastive-i2v merge"):
        Trainer(beside(config, "again", model=str(folder)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("to_q", "querry")}, r"no layer is named querry; there are .*conv_in.*to_out\.0.*to_q"),
        ({"targets": ("q",)}, "no layer is named q;"),
    ],
)
def test_targets_that_match_nothing_are_refused(config: TrainConfig, changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trainer(replace(config, lora=replace(LORA, **changes)))


def test_targets_may_hold_stars(config: TrainConfig) -> None:
    lora = AdapterConfig(rank=2, targets=("mid_block.*.to_q", "ff.net.*", "conv_shortcut"))
    network = Trainer(replace(config, lora=lora)).system.network
    adapted = {name.split(".lora_A")[0] for name, _ in network.named_parameters() if ".lora_A" in name}
    assert {name for name in adapted if name.endswith("to_q")} == {
        f"unet.mid_block.attentions.0.transformer_blocks.0.attn{number}.to_q" for number in (1, 2)
    }
    assert any(name.endswith("ff.net.2") for name in adapted)
    assert any(name.endswith("conv_shortcut") for name in adapted)


def test_new_layers_are_adapted_where_nothing_else_is_trained(video_config: TrainConfig) -> None:
    """Emu Video's video stage as published: the image model's own layers stay."""
    image = Trainer(replace(video_config, system=IMAGE, steps=1, lora=AdapterConfig())).run()
    config = beside(video_config, "video", system=FROZEN, model=str(image))
    _, folder, expected = trained(config)
    base = dict(load_system(config.model, config.system, device="cpu").network.named_parameters())
    opened = load_system(folder, device="cpu")
    for name, value in opened.network.named_parameters():
        if name.startswith("unet."):
            assert torch.equal(value, base[name]), name
    torch.testing.assert_close(predict(opened), expected, rtol=1e-4, atol=1e-5)
    files = load_file(folder / BESIDE)
    adapted = {name.split(".lora_")[0] for name in files if ".lora_" in name}
    assert {name.partition("attn.")[2] for name in adapted} == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(
        name.startswith("temporal.") and torch.equal(files[f"{name}.weight"], base[f"{name}.weight"])
        for name in adapted
    )
    moved = {name for name, value in files.items() if name in base and not torch.equal(value, base[name])}
    assert moved and not {name.rpartition(".")[0] for name in moved} & adapted
    network = Trainer(beside(config, "named", lora=replace(LORA, targets=("conv_condition",)))).system.network
    assert {name.split(".lora_")[0] for name, _ in network.named_parameters() if ".lora_" in name} == {
        "temporal.conv_condition"
    }


@pytest.mark.processes
def test_two_processes_train_one_adapter(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, steps=2, batch_size=2, checkpoint_every=1)
    launch(config, tmp_path / "run.yaml")
    load_system(config.output / "model", device="cpu")
    assert all(".lora_" in name for name in last_tensors(config)["network"])
