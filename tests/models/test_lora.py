"""Adapters as files: what diffusers makes of them, merging against float64, weights, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from video_models import randn

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.models.loading import split_options, split_weight, with_adapters
from contrastive_i2v.models.lora import BESIDE, UNET, AdapterConfig, LoraTraining
from contrastive_i2v.models.wan import Wan, WanConfig
from contrastive_i2v.system import DESCRIPTION, System

LORA = AdapterConfig(rank=2, alpha=3)


def adapter(base: str | Path, folder: Path, config: AdapterConfig = LORA, *, seed: int = 0, **options: Any) -> System:
    """A system with an adapter that has changed as if by training, written to a folder."""
    system = load_system(base, InstructPix2PixConfig(**options), device="cpu")
    training = LoraTraining(system, config, base=str(base), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in training.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    training.save(folder)
    return system


@pytest.fixture
def folder(pipeline_folder: Path, tmp_path: Path) -> Path:
    adapter(pipeline_folder, tmp_path / "a")
    return tmp_path / "a"


def predict(unet: Any, channels: int = 8) -> Tensor:
    told = {"encoder_hidden_states": randn(2, 12, 16, seed=1)}
    with torch.no_grad():
        prediction: Tensor = unet(randn(2, channels, 8, 8), torch.tensor([9, 700]), **told).sample
    return prediction


def test_diffusers_opens_an_adapter_and_the_output_changes_as_training_changed_it(
    pipeline_folder: Path, build_pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    trained = adapter(pipeline_folder, tmp_path / "a")
    pipeline = build_pipeline()
    before = predict(pipeline.unet)
    pipeline.load_lora_weights(tmp_path / "a")
    changed = predict(pipeline.unet) - before
    ours = predict(trained.unet) - predict(load_system(pipeline_folder, device="cpu").unet)  # type: ignore[attr-defined]
    assert ours.abs().max() > 1e-2
    torch.testing.assert_close(changed, ours, rtol=0, atol=1e-6)
    pipeline.set_adapters(pipeline.get_active_adapters(), adapter_weights=[0.5])
    half = load_system(f"{pipeline_folder}?lora={tmp_path / 'a'}=0.5", device="cpu")
    torch.testing.assert_close(predict(pipeline.unet), predict(half.unet), rtol=0, atol=1e-6)  # type: ignore[attr-defined]


def test_diffusers_opens_an_adapter_of_a_text_to_image_model_beside_its_new_convolution(
    base_folder: Path, tmp_path: Path
) -> None:
    trained = adapter(base_folder, tmp_path / "a")
    load_system(base_folder, device="cpu").save(tmp_path / "converted")
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "converted")
    pipeline.load_lora_weights(tmp_path / "a")
    beside = load_file(tmp_path / "a" / BESIDE)
    assert beside.keys() == {"unet.conv_in.weight", "unet.conv_in.bias"}
    pipeline.unet.conv_in.load_state_dict({name.removeprefix("unet.conv_in."): one for name, one in beside.items()})
    torch.testing.assert_close(predict(pipeline.unet), predict(trained.unet), rtol=0, atol=1e-6)  # type: ignore[attr-defined]


def test_diffusers_opens_an_adapter_of_a_transformer(tmp_path: Path) -> None:
    """Wan's; tests/models/test_ltx_video.py trains one of LTX-Video."""
    Wan.random(WanConfig(image_condition="clean-latent")).save(tmp_path / "base")
    system = load_system(tmp_path / "base", device="cpu")
    training = LoraTraining(system, LORA, base=str(tmp_path / "base"), seed=0)
    for parameter in training.trainable():
        parameter.data.add_(0.1 * randn(*parameter.shape))
    training.save(tmp_path / "a")
    pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(tmp_path / "base")
    told = (randn(1, 4, 3, 8, 8), torch.tensor([500.0]), randn(1, 16, 32))
    opened = load_system(tmp_path / "a", device="cpu")
    with torch.no_grad():
        before = pipeline.transformer(*told).sample
        pipeline.load_lora_weights(tmp_path / "a")
        after, ours, merged = (
            one(*told).sample
            for one in (pipeline.transformer, system.transformer, opened.transformer)  # type: ignore[attr-defined]
        )
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(ours, after, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged, after, rtol=0, atol=1e-6)


def test_merging_is_the_sum_of_the_weighted_changes(pipeline_folder: Path, tmp_path: Path) -> None:
    lora = AdapterConfig(rank=2, alpha=3, targets=("to_q", "conv_shortcut", "conv_in"))
    first = dict(adapter(pipeline_folder, tmp_path / "a", lora).network.named_parameters())
    second = dict(adapter(pipeline_folder, tmp_path / "b", seed=1).network.named_parameters())
    merged = load_system(f"{pipeline_folder}?lora={tmp_path}/a=0.75&lora={tmp_path}/b=-1.5", device="cpu")
    base = dict(load_system(pipeline_folder, device="cpu").network.named_parameters())
    changed = set()
    for name, value in merged.network.named_parameters():
        expected, layer = base[name].detach().double(), name.removesuffix(".weight")
        for weight, adapted in ((0.75, first), (-1.5, second)):
            if f"{layer}.lora_A.default.weight" in adapted:
                down, up = (adapted[f"{layer}.lora_{one}.default.weight"].detach().double() for one in "AB")
                expected = expected + weight * 3 / 2 * (up.flatten(1) @ down.flatten(1)).view_as(expected)
                changed.add(layer.rpartition(".")[2])
        torch.testing.assert_close(value.detach().double(), expected, rtol=1e-6, atol=1e-7, msg=name)
    assert changed == {"to_q", "conv_shortcut", "conv_in", "to_k", "to_v", "0"}


def test_new_modules_change_by_their_weights_too(base_folder: Path, tmp_path: Path) -> None:
    ends = [adapter(base_folder, tmp_path / name, seed=seed).unet.conv_in.weight for seed, name in enumerate("ab")]  # type: ignore[attr-defined]
    base = load_system(base_folder, device="cpu").unet.conv_in.weight  # type: ignore[attr-defined]
    both = load_system(f"{base_folder}?lora={tmp_path}/a=0.5&lora={tmp_path}/b=2", device="cpu")
    expected = base + 0.5 * (ends[0] - base) + 2 * (ends[1] - base)
    torch.testing.assert_close(both.unet.conv_in.weight, expected)  # type: ignore[attr-defined]


def test_an_adapter_is_a_model_with_options_of_its_own(base_folder: Path, tmp_path: Path) -> None:
    trained = adapter(base_folder, tmp_path / "a", past_frames=2, noise_level=True)
    opened = load_system(tmp_path / "a", device="cpu")
    assert opened.config == trained.config and opened.window == trained.window
    assert load_file(tmp_path / "a" / BESIDE).keys() == {
        f"unet.{name}.{kind}"
        for name in ("conv_in", "class_embedding.linear_1", "class_embedding.linear_2")
        for kind in ("weight", "bias")
    }
    longer = load_system(tmp_path / "a", InstructPix2PixConfig(past_frames=3), device="cpu")
    assert longer.window.length == 4
    grown, own = longer.unet.conv_in.weight, opened.unet.conv_in.weight  # type: ignore[attr-defined]
    assert torch.equal(grown[:, : own.shape[1]], own) and not grown[:, own.shape[1] :].any()
    opened.save(tmp_path / "whole")
    again = load_system(tmp_path / "whole", device="cpu")
    for name, value in again.network.named_parameters():
        assert torch.equal(value, opened.network.get_parameter(name)), name
    assert "adapter" not in json.loads((tmp_path / "whole" / DESCRIPTION).read_text())


def test_what_an_adapter_starts_with_is_its_seed_s(pipeline_folder: Path) -> None:
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(starts))
        system = load_system(pipeline_folder, device="cpu")
        before = predict(system.unet)  # type: ignore[attr-defined]
        after = torch.random.get_rng_state()
        training = LoraTraining(system, LORA, base=str(pipeline_folder), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), after)
        assert torch.equal(predict(system.unet), before)  # type: ignore[attr-defined]
        starts.append(training.trainable()[0].detach().clone())
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_a_base_that_changed_or_is_gone_is_named(pipeline_folder: Path, tmp_path: Path) -> None:
    base = load_system(pipeline_folder, device="cpu")
    base.save(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "a")
    base.sampler = base.sampler.__class__(steps=3)
    base.save_description(tmp_path / "base")  # as calibrate does: the weights are the same
    load_system(tmp_path / "a", device="cpu")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(
        InputError, match=r"/a: an adapter of model '.*/base', which doesn't open.*does not exist.*--lora"
    ):
        load_system(tmp_path / "a", device="cpu")
    load_system(f"{tmp_path / 'moved'}?lora={tmp_path / 'a'}", device="cpu")
    with torch.no_grad():
        base.unet.conv_out.bias.add_(1)  # type: ignore[attr-defined]
    base.save(tmp_path / "base")
    with pytest.raises(InputError, match=r"/a: was trained on '.*/base', and the weights or the form .* are others"):
        load_system(tmp_path / "a", device="cpu")


def test_an_adapter_of_another_model_is_refused(
    folder: Path, build_pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    build_pipeline(seed=1).save_pretrained(tmp_path / "other")
    for other in (tmp_path / "other", "tiny"):
        with pytest.raises(InputError, match=f"{folder}: was trained on .*pipeline0', and the weights or the form"):
            load_system(f"{other}?lora={folder}", device="cpu")
    with pytest.raises(InputError, match="tiny: is no adapter's folder"):
        load_system(f"{folder}?lora=tiny", device="cpu")


def test_damaged_files_are_named(folder: Path) -> None:
    content = (folder / UNET).read_bytes()
    for damaged in (content[:-1] + b"\0", content[:100], b""):
        (folder / UNET).write_bytes(damaged)
        with pytest.raises(InputError, match=f"{UNET}: isn't what training wrote .*checksum.*copy the adapter again"):
            load_system(folder, device="cpu")
    (folder / UNET).unlink()
    with pytest.raises(InputError, match=f"{UNET}: isn't what training wrote .*can't be read"):
        load_system(folder, device="cpu")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rank", 0, "rank: expected at least 1"),
        ("rank", 3, "doesn't fit its base .rank 3 isn't that of its files"),
        ("alpha", float("nan"), "alpha"),
        ("base", None, "base"),
        ("files", {}, "doesn't fit its base"),
    ],
)
def test_a_damaged_description_is_named(folder: Path, key: str, value: Any, message: str) -> None:
    said = json.loads((folder / DESCRIPTION).read_text())
    said["adapter"][key] = value
    (folder / DESCRIPTION).write_text(json.dumps(said))
    with pytest.raises(InputError, match=message) as error:
        load_system(folder, device="cpu")
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": -1}, "rank: expected at least 0, got -1"),
        ({"rank": 2, "alpha": 0}, "alpha: expected a number > 0, got 0"),
        ({"rank": 2, "targets": ()}, "targets: expected one at least, got none"),
        ({"alpha": 2}, "rank=0 trains none"),
        ({"targets": ("to_q",)}, "rank=0 trains none"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdapterConfig(**changes)


def test_names_with_adapters(tmp_path: Path) -> None:
    name = with_adapters("runs/a?frame_init=false", ("b=0.5", "c"))
    assert split_options(name) == ("runs/a", {"frame_init": False, "lora": ["b=0.5", "c"]})
    assert with_adapters("tiny", ("b",)) == "tiny?lora=b" and with_adapters("tiny", ()) == "tiny"
    assert split_weight("b=-0.5") == ("b", -0.5) and split_weight("b") == ("b", 1.0)
    (tmp_path / "rate=3").mkdir()
    assert split_weight(f"{tmp_path}/rate=3") == (f"{tmp_path}/rate=3", 1.0)
    for weight in ("much", "nan", "inf", ""):
        with pytest.raises(InputError, match=f"lora 'b={weight}': expected PATH or PATH=WEIGHT with a number"):
            split_weight(f"b={weight}")
