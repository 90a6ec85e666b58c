"""Weights in fewer bits: near what they were, exact in what is made of them, and as small as they should be."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.models.quantization import QuantizedLinear, Storage, quantize, repeated_blocks

NF4 = pytest.param("nf4", 0.12, 0.5625)


def linear(width: int = 96, out: int = 64) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(width, out)


def inputs() -> Tensor:
    return torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(1), requires_grad=True)


def needs(storage: str) -> None:
    if storage == "nf4":
        pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize(("storage", "error", "size"), [("bfloat16", 3e-3, 2.0), ("int8", 6e-3, 1 + 4 / 96), NF4])
def test_weights_are_near_and_small(storage: Storage, error: float, size: float) -> None:
    needs(storage)
    layer = linear()
    quantized = QuantizedLinear(layer, storage)
    difference = quantized.weight - layer.weight
    assert 0 < float(difference.detach().norm() / layer.weight.detach().norm()) < error
    kept = [value for name, value in quantized.named_parameters() if name != "bias"]
    assert sum(value.nbytes for value in kept) == size * layer.weight.numel()
    assert not any(value.requires_grad for value in kept)
    if storage == "int8":  # to the nearest step of a row
        assert bool((difference.abs() <= 0.5001 * layer.weight.abs().amax(1, keepdim=True) / 127).all())


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "nf4"])
def test_the_product_and_its_gradient_are_those_of_the_dequantized_weights(storage: Storage) -> None:
    needs(storage)
    layer, x = QuantizedLinear(linear(), storage), inputs()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sin().sum(), x)
    wide = x.detach().double().requires_grad_()
    truth = wide @ layer.weight.double().T + layer.bias.double()
    (expected,) = torch.autograd.grad(truth.sin().sum(), wide)
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), truth, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "nf4"])
def test_a_copy_moves_and_keeps_its_codes(storage: Storage) -> None:
    needs(storage)
    layer, x = QuantizedLinear(linear(), storage), inputs()
    twin = copy.deepcopy(layer).to(torch.float16).to(torch.float32)
    assert torch.equal(twin(x), QuantizedLinear(linear(), storage)(x))
    assert twin.codes.data_ptr() != layer.codes.data_ptr()


def test_the_linear_layers_of_repeated_blocks_are_quantized_and_no_other(pipeline_folder: Path) -> None:
    plain, system = (load_system(pipeline_folder, device="cpu") for _ in range(2))
    blocks = repeated_blocks(system.network)
    assert blocks and all(type(block).__name__ == "BasicTransformerBlock" for block in blocks.values())
    kept = f"{next(iter(blocks))}.attn1.to_q"
    before = sum(value.nbytes for value in system.network.parameters())
    quantize(system.network, "int8", but=lambda name: name == kept)
    changed = {name for name, module in system.network.named_modules() if isinstance(module, QuantizedLinear)}
    inside = {
        name
        for name, module in plain.network.named_modules()
        if type(module) is nn.Linear and name.startswith(tuple(f"{block}." for block in blocks))
    }
    assert changed == inside - {kept}
    layers = [plain.network.get_submodule(name) for name in changed]
    saved = sum(3 * layer.weight.numel() - 4 * layer.out_features for layer in layers)  # type: ignore[operator, union-attr, misc]
    assert before - sum(value.nbytes for value in system.network.parameters()) == saved

    generator = torch.Generator().manual_seed(0)
    noisy, given = (torch.randn(2, 1, 4, 8, 8, generator=generator) for _ in range(2))
    with torch.no_grad():
        condition = plain.condition(given, plain.encode_text(["a red ball"] * 2))
        expected, found = (one.network(noisy, torch.tensor([9, 700]), **condition) for one in (plain, system))
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02


def test_a_model_is_opened_quantized_by_its_name(pipeline_folder: Path, tmp_path: Path) -> None:
    system = load_system(f"{pipeline_folder}?quantize=int8", device="cpu", dtype=torch.bfloat16)
    layers = [module for module in system.network.modules() if isinstance(module, QuantizedLinear)]
    assert layers and {layer.codes.dtype for layer in layers} == {torch.int8}
    with pytest.raises(InputError, match="rounded to int8 when they were opened; save a model"):
        system.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(InputError, match="quantize=int4: expected one of bfloat16, int8, nf4"):
        load_system(f"{pipeline_folder}?quantize=int4", device="cpu")


def test_what_cannot_be_quantized_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Sequential names no repeated blocks"):
        quantize(nn.Sequential(linear()), "int8")
    with pytest.raises(InputError, match="base_dtype=int8: is of frozen weights, and with rank=0 all are trained"):
        AdapterConfig(base_dtype="int8")
    modules: dict[str, Any] = {"bitsandbytes": None}
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", modules["bitsandbytes"])
    with pytest.raises(InputError, match="nf4 needs bitsandbytes: pip install bitsandbytes, or choose int8"):
        QuantizedLinear(linear(), "nf4")
