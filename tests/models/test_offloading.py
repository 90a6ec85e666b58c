"""Rounded and offloaded blocks in diffusers' video transformers, as families train them: LoRA, checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn
from video_models import randn
from watched import Watched

from contrastive_i2v.models.quantization import Storage, quantize, repeated_blocks


def wan() -> nn.Module:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip


def ltx() -> nn.Module:
    torch.manual_seed(0)
    return LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=3, caption_channels=8,
    )  # fmt: skip


def gradients(network: Any) -> tuple[Tensor, list[Tensor]]:
    """The prediction at fixed inputs, and the gradient of its square by the adapters."""
    text = randn(2, 5, 8, seed=1)
    if isinstance(network, WanTransformer3DModel):
        out = network(randn(2, 4, 2, 4, 4), torch.tensor([9, 700]), text, return_dict=False)[0]
    else:
        mask, size = torch.ones(2, 5), {"num_frames": 2, "height": 4, "width": 4}
        out = network(randn(2, 32, 4), text, torch.tensor([9, 700]), mask, **size, return_dict=False)[0]
    adapters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return out.detach(), list(torch.autograd.grad(out.square().mean(), adapters))


def adapted(network: nn.Module) -> nn.Module:
    """With LoRA whose B isn't zero, and nothing else to train."""
    network.requires_grad_(False)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), network
    )
    return network.train()


@pytest.mark.parametrize("make", [wan, ltx])
@pytest.mark.parametrize("storage", [None, "int8", "nf4"])
def test_blocks_of_video_transformers(make: Any, storage: Storage | None) -> None:
    if storage == "nf4":
        pytest.importorskip("bitsandbytes")
    network = adapted(make())
    assert len(repeated_blocks(network)) == 3
    whole, _ = gradients(network)
    if storage:
        quantize(network, storage, but=lambda name: ".lora_" in name)
    expected, slopes = gradients(network)
    error = float((expected - whole).norm() / whole.norm())
    assert (error == 0) if storage is None else 0 < error < (0.02 if storage == "int8" else 0.3)
    away: Any = copy.deepcopy(network)
    away.enable_gradient_checkpointing()
    Watched(away, torch.device("cpu"), [one for one in away.parameters() if one.requires_grad])
    found, again = gradients(away)
    assert torch.equal(found, expected)
    assert all(torch.equal(one, two) for one, two in zip(again, slopes, strict=True))
