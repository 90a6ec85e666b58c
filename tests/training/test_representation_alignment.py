"""Representation alignment in training: what the encoder sees, what is trained, resumed, counted and refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from runs import assert_same_run, beside, train_until
from test_waits import counted
from toy import BlockMeans, Toy

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.preparation import stretch
from contrastive_i2v.models import load_system
from contrastive_i2v.system import Window
from contrastive_i2v.training.batches import build_loader
from contrastive_i2v.training.config import LossConfig, OwnSamplesConfig, TrainConfig
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.representation_alignment import PatchEncoder, RepresentationAlignment, forward_flops
from contrastive_i2v.training.trainer import Trainer

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 15,
}


@pytest.fixture
def config(train_config: TrainConfig, encoder: Path) -> TrainConfig:
    loss = LossConfig(target_weight=0.0, alignment_weight=0.5, alignment_encoder=str(encoder))
    return replace(train_config, loss=loss, log_every=1)


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "DINOv3ViT"])
def test_the_targets_are_the_patch_tokens_by_their_places(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**SIZES, patch_size=5)).eval()
    model.save_pretrained(tmp_path)
    frames = torch.rand(2, 3, 16, 26, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = PatchEncoder(str(tmp_path))(frames)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((stretch(frames, 15, 25) + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state
    first = 1 + getattr(model.config, "num_register_tokens", 0)
    assert found.shape == (2, 16, 3, 5) and tokens.shape[1] == first + 15
    torch.testing.assert_close(found[1, :, 2, 1], tokens[1, first + 2 * 5 + 1])


@pytest.mark.parametrize("kind", ["one frame", "own samples"])
def test_the_projection_moves_and_resumes_bitwise(
    config: TrainConfig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, steps=4)
    if kind == "own samples":
        own = OwnSamplesConfig(contrast_share=0.5, depth=1, clips=2, refresh=4, steps=1)
        config = replace(config, loss=replace(config.loss, own_weight=0.3), own_samples=own)
    trainer = Trainer(config)
    assert trainer.alignment is not None
    start = {name: value.clone() for name, value in trainer.alignment.loss.state_dict().items()}
    frozen = {name: value.clone() for name, value in trainer.alignment.encoder.state_dict().items()}
    trainer.run()
    broken = beside(config, "broken")
    train_until(broken, config.steps - 1, monkeypatch)
    Trainer(replace(broken, resume=True)).run()
    assert_same_run(config.output, broken.output)
    last, after = trainer.alignment.loss.state_dict(), trainer.alignment.encoder.state_dict()
    assert not any(torch.equal(last[name], start[name]) for name in start)
    assert all(torch.equal(after[name], frozen[name]) for name in frozen)
    rows = read_log(config.output / "log.jsonl")
    own_loss = 0.3 * (rows[-1]["own_samples/real"] + rows[-1]["own_samples/own"]) if kind == "own samples" else 0.0
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["mse"] + 0.5 * rows[-1]["alignment"] + own_loss, rel=1e-5)
    assert rows[-1]["alignment"] < rows[0]["alignment"] - 0.1


def test_the_gradient_reaches_the_network_below_the_layer_alone(config: TrainConfig) -> None:
    trainer = Trainer(config)
    assert trainer.alignment is not None
    network, alignment = trainer.system.network, trainer.alignment
    clean = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = trainer.system.condition(clean, trainer.system.encode_text(["a", "b"]))
    network(clean, torch.zeros(2), **condition)
    alignment(clean).backward()  # type: ignore[no-untyped-call]
    moved = {name.split(".")[1] for name, value in network.named_parameters() if value.grad is not None}
    assert "mid_block" in moved and "down_blocks" in moved and not moved & {"up_blocks", "conv_out"}


def test_its_networks_are_counted(config: TrainConfig) -> None:
    trainer = Trainer(config)
    assert trainer.alignment is not None
    assert trainer.compute.step == 1 + trainer.alignment.units > 1
    layer = torch.nn.Linear(3, 5)
    assert forward_flops(lambda: layer(torch.zeros(7, 3))) == 2 * 7 * 3 * 5
    budget = replace(config, equal_compute=True, steps=20)
    assert Trainer(beside(budget, "budget")).steps == int(20 / trainer.compute.step)


@pytest.mark.parametrize("window", [Window(3), Window(3, regenerates=True)])
def test_a_window_of_frames_has_a_map_each(config: TrainConfig, window: Window) -> None:
    """A layer that sees given frames as well counts those that the network makes alone."""

    class Frames(Toy):
        middle = "each"

    system = Frames(window)
    system.network.each = torch.nn.Identity()  # type: ignore[assignment]
    trainer = Trainer(replace(config, loss=LossConfig()))
    forward = type(system.network).forward

    def through(noisy: Any, timesteps: Any, given: Any, prompt_embeds: Any) -> Any:
        seen = noisy if window.regenerates else torch.cat([given, noisy], dim=1)
        system.network.each(seen.flatten(0, 1))  # type: ignore[operator]
        return forward(system.network, noisy, timesteps, given, prompt_embeds)

    system.network.forward = through  # type: ignore[method-assign, assignment]
    alignment = RepresentationAlignment(config, system, trainer.accelerator)
    noisy, given = torch.randn(2, len(window.generated), 3, 2, 2), torch.randn(2, 1, 3, 2, 2)
    system.network(noisy, torch.zeros(2), given=given, prompt_embeds=torch.zeros(2, 1, 1))
    assert torch.equal(alignment._maps(2), noisy.flatten(0, 1))


def test_what_cant_be_aligned_is_said(config: TrainConfig, encoder: Path, tmp_path: Path) -> None:
    for options, says in (
        ({"alignment_weight": 0.5}, "alignment_weight=0.5: needs alignment_encoder"),
        ({"alignment_encoder": "x"}, "for alignment_weight, which is 0"),
        ({"alignment_layer": "unet"}, "for alignment_weight, which is 0"),
        ({"alignment_weight": -1.0, "alignment_encoder": "x"}, "alignment_weight: expected at least 0"),
    ):
        with pytest.raises(InputError, match=says):
            LossConfig(**options)

    def refuse(says: str, **options: Any) -> None:
        with pytest.raises(InputError, match=says):
            Trainer(replace(config, loss=replace(config.loss, **options)))

    refuse("alignment_layer=nowhere: the network", alignment_layer="nowhere")
    refuse("alignment_layer: its output isn't a map", alignment_layer="unet.time_embedding")
    refuse("'/nowhere' is neither a folder .* nor a hub id", alignment_encoder="/nowhere")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text((encoder / "config.json").read_text())
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"\0" * 64)
    refuse("loss.alignment_encoder:.*could not be loaded", alignment_encoder=str(tmp_path / "damaged"))
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES)).save_pretrained(tmp_path / "clip")
    refuse("is of type clip_vision_model; expected one of dinov2", alignment_encoder=str(tmp_path / "clip"))

    trainer = Trainer(beside(config, "other", loss=LossConfig()))
    with pytest.raises(InputError, match="aren't of single frames"):
        RepresentationAlignment(config, Toy(codec=BlockMeans(4)), trainer.accelerator)
    with pytest.raises(InputError, match="loss.alignment_weight: there is none with mixed_precision=fp16"):
        system = load_system(config.model, device="cpu")
        system.size = (16, 16)
        RepresentationAlignment(replace(config, mixed_precision="fp16"), system, trainer.accelerator)


def test_a_step_waits_as_often_as_without(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(config)
    first, second = islice(build_loader(trainer.dataset, config, trainer.accelerator, step=0), 2)
    trainer._train_step([first])
    with counted(monkeypatch) as reads:
        trainer._train_step([second])
    assert dict(reads) == {"__bool__": 1}  # is the gradient finite?
