"""Frozen weights kept in fewer bits: the linear layers of a network's repeated blocks, for LoRA and for sampling.

Weights alone are quantised, and are made whole again, in the activations' precision, for each product that needs them:

    y = x W'^T + b,    dL/dx = dL/dy W',    W' = dequantize(quantize(W))

The rest of a network (embeddings, norms, convolutions, biases) stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_i2v.errors import InputError

Storage: TypeAlias = Literal["bfloat16", "int8", "nf4"]
"""What weights are kept in: 2, 1 or 0.56 bytes each, the scales included."""

BLOCK = 64
"""Weights that share a scale in nf4, as QLoRA has them."""


class QuantizedLinear(nn.Module):
    """A linear layer whose weights are kept in few bits and get no gradient; its input does.

    bfloat16 is rounding. int8 is round(W / s), s = max |W| / 127 of each output's row. nf4 is the nearest of 16 levels,
    quantiles of a normal distribution, times max |W| of each 64 weights in a row, by bitsandbytes: Dettmers et al.,
    "QLoRA" (arXiv 2305.14314), section 3; its scales are not quantised again.

    Raises InputError for nf4 without bitsandbytes.
    """

    def __init__(self, linear: nn.Linear, storage: Storage) -> None:
        super().__init__()
        self.storage, self.in_features, self.out_features = storage, linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scale = None
        if storage == "int8":
            scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127  # [out, 1]
            weight = (weight / scale).round().to(torch.int8)
        elif storage == "nf4":
            weight, state = _bitsandbytes().quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
            scale = state.absmax  # [ceil(out in / 64)]
        else:
            weight = weight.to(torch.bfloat16)
        self.codes = nn.Parameter(weight, requires_grad=False)
        self.scale = None if scale is None else nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def dequantize(self, codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """W', `[out, in]`, of this layer's codes and scale."""
        shape = self.out_features, self.in_features
        if self.storage == "nf4":
            functional = _bitsandbytes()
            state = functional.QuantState(scale, shape=shape, dtype=dtype, blocksize=BLOCK, quant_type="nf4")
            whole: Tensor = functional.dequantize_4bit(codes, state)
            return whole
        if scale is None:
            return codes.to(dtype)
        # rounded once, from the product in the scale's float32
        return torch.mul(codes, scale, out=torch.empty(shape, dtype=dtype, device=codes.device))

    @property
    def weight(self) -> Tensor:
        """W' in float32, for those who look at a layer's weight."""
        return self.dequantize(self.codes.data, self.scale, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """x W'^T + b, in autocast's precision where there is one."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _Product.apply(x, self.codes, self.scale, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Moves as other layers do; a change of dtype is for the others."""

        def moved(value: Tensor) -> Tensor:
            made = fn(value)
            return made if made.dtype == value.dtype else value.to(made.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, storage={self.storage}"


class _Product(torch.autograd.Function):
    """x W'^T, which keeps the codes for the backward pass, and neither x nor W'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor | None, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(codes, scale)  # gradient checkpointing computes a block again when it is asked for these
        return F.linear(x, layer.dequantize(codes, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient @ ctx.layer.dequantize(*ctx.saved_tensors, gradient.dtype), None, None, None


def repeated_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks that most of a network's weights are in, by name: of the classes that diffusers' models name as
    `_repeated_blocks`; none lies in another one. Raises InputError where there are none."""
    classes = {name for module in network.modules() for name in getattr(module, "_repeated_blocks", None) or ()}
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if type(module).__name__ in classes and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    if not found:
        raise InputError(
            f"{type(network).__name__} names no repeated blocks, whose weights could be quantised or offloaded; "
            "expected a model of diffusers with _repeated_blocks in it"
        )
    return found


def quantize(network: nn.Module, storage: Storage, *, but: Callable[[str], bool] = lambda name: False) -> None:
    """Put `QuantizedLinear` in place of the linear layers of a network's repeated blocks.

    Args:
        but: says of a layer's name in the network whether it stays.

    Raises:
        InputError: no repeated blocks, or nf4 without bitsandbytes.
    """
    for block, module in repeated_blocks(network).items():
        for name, layer in list(module.named_modules()):
            if type(layer) is nn.Linear and not but(f"{block}.{name}"):
                module.set_submodule(name, QuantizedLinear(layer, storage))


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise InputError("nf4 needs bitsandbytes: pip install bitsandbytes, or choose int8") from error
    return functional
