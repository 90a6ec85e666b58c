"""ConsistI2V's weights as their authors published them: every value in its place, or one line that says what is not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from video_models import TEXT_WIDTH, consisti2v, image_unet, randn, told

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system, opening_kind
from contrastive_i2v.models.consisti2v import ConsistI2V, ConsistI2VConfig

FILE = "diffusion_pytorch_model.safetensors"


def published_names(system: ConsistI2V) -> dict[str, Tensor]:
    """A system's weights by the authors' names, with the two that their forward pass doesn't use."""
    weights: dict[str, Tensor] = {}
    for name, value in system.unet.state_dict().items():
        weights[name.replace("class_embedding.", "frame_stride_embedding.")] = value
    for name, value in system.temporal.state_dict().items():
        _, followed, *rest = name.split(".")  # layers.down_blocks-0-resnets-1.norm1.weight
        block, kind, number = re.fullmatch(r"(.*)-(resnets|attentions)-(\d+)", followed).groups()  # type: ignore[union-attr]
        theirs = {"resnets": "conv3ds", "attentions": "tempo_attns"}[kind]
        weights[".".join([block.replace("-", "."), theirs, number, *rest])] = value
    for name in [name for name in weights if name.endswith(".alpha")]:
        layer = name.removesuffix(".alpha")
        if "conv3ds" in layer:
            width = weights[f"{layer}.norm1.weight"].shape[0]
            weights[f"{layer}.time_emb_proj.weight"] = torch.zeros(width, 64)
            weights[f"{layer}.time_emb_proj.bias"] = torch.zeros(width)
        else:
            for attention in ("attn1", "attn2"):
                bias = f"{layer}.transformer_blocks.0.{attention}.rotary_bias.relative_attention_bias.weight"
                weights[bias] = torch.zeros(32, 8)
    return {name: value.clone() for name, value in weights.items()}


@pytest.fixture
def original(base_folder: Path) -> ConsistI2V:
    """A model whose frequencies were trained as well."""
    system = consisti2v(base_folder, stirred=True, rope="reference")
    for name, value in system.temporal.named_buffers():
        assert name.endswith("rotary_emb.freqs")
        value.mul_(1.25)
    return system


@pytest.fixture
def folder(base_folder: Path, original: ConsistI2V, tmp_path: Path) -> Path:
    """The authors' layout: one UNet with everything, its config with options that diffusers' UNet hasn't."""
    made = Path(shutil.copytree(base_folder, tmp_path / "published"))
    config = json.loads((made / "unet" / "config.json").read_text()) | {
        "_class_name": "VideoLDMUNet3DConditionModel",
        "use_temporal": True,
        "n_frames": 16,
        "n_temp_heads": 8,
        "first_frame_condition_mode": "concat",
        "augment_temporal_attention": True,
        "temp_pos_embedding": "rotary",
        "use_frame_stride_condition": True,
    }
    (made / "unet" / "config.json").write_text(json.dumps(config))
    save_file(published_names(original), made / "unet" / FILE)
    return made


def test_the_names_are_the_authors(original: ConsistI2V) -> None:
    """As the authors' files have them."""
    names = set(published_names(original))
    block = "up_blocks.1.tempo_attns.1.transformer_blocks.0"
    expected = {
        "conv_in.weight",
        "frame_stride_embedding.linear_1.weight",
        "frame_stride_embedding.linear_2.bias",
        "down_blocks.0.conv3ds.0.alpha",
        "down_blocks.1.conv3ds.0.norm1.weight",
        "up_blocks.0.conv3ds.1.conv2.bias",
        "mid_block.conv3ds.1.time_emb_proj.weight",
        "down_blocks.0.tempo_attns.0.alpha",
        "up_blocks.1.tempo_attns.0.norm.weight",
        "up_blocks.1.tempo_attns.0.proj_in.weight",
        "up_blocks.1.tempo_attns.0.proj_out.bias",
        f"{block}.norm3.weight",
        f"{block}.attn1.to_q.weight",
        f"{block}.attn1.to_out.0.bias",
        f"{block}.attn2.rotary_emb.freqs",
        f"{block}.attn2.rotary_bias.relative_attention_bias.weight",
        f"{block}.ff.net.0.proj.weight",
        f"{block}.ff.net.2.bias",
    }
    assert expected <= names and not any("mid_block.tempo_attns" in name for name in names)


def test_every_value_arrives(folder: Path, original: ConsistI2V) -> None:
    """The same weights, trained frequencies too, and the same predictions; sampled as published."""
    assert opening_kind(folder) == "consisti2v"
    system = load_system(folder, device="cpu")
    assert isinstance(system, ConsistI2V)
    assert system.config == ConsistI2VConfig(
        frames=16,
        past_frames=1,
        frame_timesteps=False,
        max_stride=5,
        rope="reference",
        start_alpha=1.0,
        noise_alpha=1.0,
        frame_init=True,
        filter="gaussian",
        cutoff=0.25,
        cutoff_time=0.25,
        filter_order=4,
        frame_init_timestep=850,
    )
    assert (system.sampler.steps, system.sampler.guidance_scale, system.sampler.image_guidance_scale) == (50, 7.5, 1.0)
    for ours, theirs in ((system.unet, original.unet), (system.temporal, original.temporal)):
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    condition = told(original, 2)
    inputs = (randn(2, 3, 4, 8, 8), torch.tensor([10, 900]))
    assert torch.equal(system.network(*inputs, **condition), original.network(*inputs, **condition))
    longer = load_system(folder, ConsistI2VConfig(frames=6), device="cpu")
    assert longer.window.length == 6 and longer.config.rope == "reference"  # type: ignore[attr-defined]


def test_half_precision_and_other_settings_are_taken(folder: Path, tmp_path: Path, original: ConsistI2V) -> None:
    save_file({name: value.half() for name, value in published_names(original).items()}, folder / "unet" / FILE)
    system = load_system(folder, device="cpu")
    assert {value.dtype for value in system.network.state_dict().values()} == {torch.float32}
    system.save(tmp_path / "ours")
    again = load_system(tmp_path / "ours", device="cpu")
    assert again.config == system.config
    condition, inputs = told(original, 1), (randn(1, 3, 4, 8, 8), torch.tensor([10]))
    assert torch.equal(again.network(*inputs, **condition), system.network(*inputs, **condition))


def test_a_zero_network_is_the_image_model(folder: Path, base_folder: Path, original: ConsistI2V) -> None:
    """With alphas of 1, no stride embedding and a still video, the image model's weights alone are left."""
    weights = published_names(original)
    for name, value in weights.items():
        if name.endswith(".alpha"):
            value.fill_(1)
        if name.startswith("frame_stride_embedding.linear_2"):
            value.zero_()
    save_file(weights, folder / "unet" / FILE)
    system, image = load_system(folder, device="cpu"), image_unet(base_folder)
    latent, text, timesteps = randn(1, 4, 8, 8), randn(1, 12, TEXT_WIDTH), torch.tensor([500])
    condition = told(original, 1) | {"history": latent[:, None], "prompt_embeds": text}
    out = system.network(latent[:, None].expand(-1, 3, -1, -1, -1), timesteps, **condition)
    expected = image(latent, timesteps, text).sample[:, None].expand_as(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


def refused(folder: Path, says: str, config: Any = None) -> None:
    with pytest.raises(InputError, match=says) as error:
        load_system(folder, config, device="cpu")
    assert "\n" not in str(error.value)


ATTENTION = "up_blocks.1.tempo_attns.0.transformer_blocks.0.attn1.to_q.weight"
OURS = r"layers\.up_blocks-1-attentions-0\.transformer_blocks\.0\.attn1\.to_q\.weight"


def test_weights_that_do_not_fit_are_named(folder: Path, original: ConsistI2V) -> None:
    """One that is missing, one too many, one of another shape; of the UNet and of the temporal layers."""
    weights = published_names(original)

    def changed(says: str, **changes: Tensor | None) -> None:
        values = {name.replace("/", "."): value for name, value in changes.items()}
        kept = {name: value for name, value in (weights | values).items() if value is not None}
        save_file(kept, folder / "unet" / FILE)
        refused(folder, rf"{re.escape(FILE)}: the weights of {says}; expected ConsistI2V's as published")

    changed(rf"temporal lack 1, such as {OURS}", **{ATTENTION: None})
    changed(r"unet lack 1, such as conv_in\.bias", **{"conv_in.bias": None})
    changed(r"temporal have layers\.down_blocks-7-resnets-0\.alpha, which is foreign", **{
        "down_blocks.7.conv3ds.0.alpha": torch.ones(1)
    })  # fmt: skip
    changed(r"unet have brand\.new, which is foreign", **{"brand.new": torch.ones(1)})
    changed(rf"temporal have {OURS} of shape \[16, 8\], not \[16, 16\]", **{ATTENTION: torch.ones(16, 8)})
    changed(r"unet have conv_in\.weight of shape \[16, 9, 3, 3\], not \[16, 4, 3, 3\]", **{
        "conv_in.weight": torch.ones(16, 9, 3, 3)
    })  # fmt: skip
    unused = [name for name in weights if ("conv3ds" in name and "time_emb_proj" in name) or "rotary_bias" in name]
    assert unused
    save_file({name: value for name, value in weights.items() if name not in unused}, folder / "unet" / FILE)
    load_system(folder, device="cpu")  # these are not missed


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    refused(folder, "rope: the model was trained with 'reference'; expected", ConsistI2VConfig(rope="all"))
    file = folder / "unet" / FILE
    file.write_bytes(file.read_bytes()[:100])
    refused(folder, rf"{FILE}: can't be read .*expected the published weights as safetensors")
    file.unlink()
    refused(folder, r"unet.* lacks diffusion_pytorch_model\.safetensors|can't be read")
