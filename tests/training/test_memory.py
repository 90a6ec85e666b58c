"""Training on one card: frozen weights in few bits, and in the host's memory; encoders off the card. Nothing of it
changes what is trained but the rounding."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_same_run, beside, last_tensors, train_until
from torch import Tensor
from watched import Watched

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.autoencoder import ONLOAD_DEVICE
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.models.offloading import OffloadedBlocks
from contrastive_i2v.models.quantization import QuantizedLinear
from contrastive_i2v.training import trainer as module
from contrastive_i2v.training.config import OptimizerConfig, PreviewConfig, TrainConfig
from contrastive_i2v.training.trainer import Trainer


@pytest.fixture
def config(train_config: TrainConfig) -> TrainConfig:
    """Three steps of LoRA on an int8 base, at a rate that shows."""
    optimizer = OptimizerConfig(learning_rate=2e-2, warmup_steps=0)
    return replace(
        train_config, steps=3, log_every=1, optimizer=optimizer, lora=AdapterConfig(rank=2, base_dtype="int8")
    )


def predict(system: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy, given = (torch.randn(2, 1, 4, 8, 8, generator=generator) for _ in range(2))
    text = {"prompt_embeds": torch.randn(2, 12, 16, generator=generator)}
    with torch.no_grad():
        prediction: Tensor = system.network(noisy, torch.tensor([9, 700]), **system.condition(given, text))
    return prediction


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "nf4"])
def test_an_adapter_of_rounded_weights_merges_into_the_whole_ones(config: TrainConfig, storage: Any) -> None:
    if storage == "nf4":
        pytest.importorskip("bitsandbytes")
    config = replace(config, lora=AdapterConfig(rank=2, base_dtype=storage))
    trainer = Trainer(config)
    layers = [layer for layer in trainer.system.network.modules() if isinstance(layer, QuantizedLinear)]
    codes = [layer.codes.clone() for layer in layers]
    folder = trainer.run()
    assert layers and all(torch.equal(layer.codes, code) for layer, code in zip(layers, codes, strict=True))
    base, opened = (load_system(name, device="cpu") for name in (config.model, folder))
    change, rounded = predict(opened) - predict(base), trainer.state.with_average(lambda: predict(trainer.system))
    assert change.norm() > 1e-2 * predict(base).norm()
    assert (predict(opened) - rounded).norm() < {"nf4": 0.2}.get(storage, 0.02) * predict(base).norm()
    whole = [layer for layer in opened.network.modules() if isinstance(layer, QuantizedLinear)]
    assert not whole


def test_training_on_rounded_weights_resumes_bitwise(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(config).run()
    broken = beside(config, "broken")
    train_until(broken, 2, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)


@pytest.mark.parametrize("storage", ["float32", "int8", "nf4"])
def test_offloaded_blocks_train_to_the_same_bits(
    config: TrainConfig, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if storage == "nf4":
        pytest.importorskip("bitsandbytes")
    config = replace(config, gradient_checkpointing=True, lora=AdapterConfig(rank=2, base_dtype=storage))
    Trainer(config).run()
    monkeypatch.setattr(module, "OffloadedBlocks", Watched)
    monkeypatch.setattr(Watched, "moves", [])
    away = beside(config, "away", offload_blocks=True)
    trainer = Trainer(away)
    assert trainer.blocks is not None
    blocks = list(trainer.blocks.host)
    assert len(blocks) > 2 and all(f"-{name}" in Watched.moves for name in blocks)
    trained = {id(parameter) for parameter in trainer.state.trainable}
    assert not trained & {id(parameter) for held in trainer.blocks.host.values() for parameter, _ in held}
    Watched.moves.clear()
    trainer.run()
    # forth and back again, and what was there is taken back before the next comes
    loads = [move[1:] for move in Watched.moves if move[0] == "+"]
    assert loads[: 2 * len(blocks)] == [*loads[: len(blocks)], *reversed(loads[: len(blocks)])]
    assert set(loads[: len(blocks)]) == set(blocks)
    assert Watched.moves[:3] == [f"+{loads[0]}", f"+{loads[1]}", f"-{loads[0]}"]
    losses = [(run.output / "log.jsonl").read_text().count('"loss"') for run in (config, away)]
    assert losses[0] == losses[1] == 3
    assert_same_run(config.output, away.output)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_one_block_is_on_the_device_at_a_time(
    config: TrainConfig, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, computed again, and backward: as `plan` counts it."""
    live, most = [0], [0]

    class Owned(np.ndarray):
        """A copy whose end is noticed."""

    def copied(_: OffloadedBlocks, host: Tensor) -> Tensor:
        owned = host.numpy().copy().view(Owned)
        live[0] += host.nbytes
        most[0] = max(most[0], live[0])
        weakref.finalize(owned, lambda size: live.__setitem__(0, live[0] - size), host.nbytes)
        return torch.from_numpy(owned)

    monkeypatch.setattr(OffloadedBlocks, "_copied", copied)
    lora = AdapterConfig(rank=2, base_dtype=storage)
    trainer = Trainer(replace(config, gradient_checkpointing=True, offload_blocks=True, lora=lora))
    assert trainer.blocks is not None
    trainer.run()
    assert most[0] == max(sum(host.nbytes for _, host in block) for block in trainer.blocks.host.values())


def test_encoders_that_come_layer_by_layer_encode_the_same_bits(
    config: TrainConfig, clips: Path, tmp_path: Path
) -> None:
    data = replace(config.data, validation_path=clips / "test")
    config = replace(config, data=data, preview=PreviewConfig(every=2, clips=1, frames=2, steps=1))
    Trainer(config).run()
    away = beside(config, "away", offload_encoders=True)
    trainer = Trainer(replace(away, data=replace(data, cache_dir=tmp_path / "anew")))
    assert hasattr(trainer.system.parts()["text_encoder"], ONLOAD_DEVICE)
    trainer.run()
    torch.testing.assert_close(last_tensors(away), last_tensors(config), rtol=0, atol=0)
    shown = [[file.read_bytes() for file in run.output.rglob("*.mp4")] for run in (config, away)]
    assert shown[0] and shown[0] == shown[1]
    anew = list((tmp_path / "anew").rglob("*.safetensors"))
    assert anew and all(
        file.read_bytes() == (data.cache_dir / file.relative_to(tmp_path / "anew")).read_bytes() for file in anew
    )


def test_what_cannot_be_offloaded_is_refused(config: TrainConfig) -> None:
    for changes, message in (
        ({}, "expected gradient_checkpointing"),
        ({"lora": AdapterConfig(), "gradient_checkpointing": True}, "expected a rank above 0"),
        ({"gradient_checkpointing": True, "compile": True}, "expected no compile"),
    ):
        with pytest.raises(InputError, match=f"offload_blocks: .*{message}"):
            replace(config, offload_blocks=True, **changes)
    with pytest.raises(InputError, match="are rounded to int8 and can't be trained; .* --lora.base-dtype int8"):
        Trainer(replace(config, model=f"{config.model}?quantize=int8"))


def test_encoders_have_the_card_before_training_and_for_previews_alone(
    config: TrainConfig, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = replace(
        config,
        data=replace(config.data, validation_path=clips / "test"),
        preview=PreviewConfig(every=2, clips=1, frames=2, steps=1),
        conditioning_dropout=0.3,
    )
    trainer = Trainer(config)
    system = trainer.system
    step, make, back = trainer._train_step, trainer.preview.make, trainer.offload_encoders  # type: ignore[union-attr]

    def note(name: str, act: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            said.append(name)
            return act(*arguments)

        return noted

    for part, name in ((system.text_encoder, "text encoder"), (system.vae, "autoencoder")):  # type: ignore[attr-defined]
        monkeypatch.setattr(part._hf_hook, "pre_forward", note(name, part._hf_hook.pre_forward))
    monkeypatch.setattr(trainer, "_train_step", note("step", step))
    monkeypatch.setattr(trainer.preview, "make", note("preview", make))
    monkeypatch.setattr(trainer, "offload_encoders", note("back", back))
    trainer.run()
    assert [name for name in said if name != "step"] == ["preview", "autoencoder", "back"]
    assert said.count("step") == 3
