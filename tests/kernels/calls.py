"""One call of the Triton kernels from the keyword arguments of a problem of `tests/ops/problems.py`."""

from __future__ import annotations

from typing import Any

import torch
from contrastive_i2v.kernels import diffusion_loss
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def to_device(value: Any, device: str = DEVICE) -> Any:
    """Tensors of a problem, wherever they are in it, on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: to_device(one, device) for name, one in value.items()}
    return [to_device(one, device) for one in value] if isinstance(value, list) else value


def positional(a: dict[str, Any], gradient: bool = True) -> tuple[Any, ...]:
    """The op's arguments in the schema's order."""
    banks = a["banks"]
    temperature = a.get("temperature", 1.0)
    is_tensor = isinstance(temperature, Tensor)
    elements = a["prediction"][0].numel()
    return (
        a["prediction"], a["noisy"], a["target"], a["c_skip"], a["c_out"], banks, a.get("positives") or [],
        temperature if is_tensor else None, 1.0 if is_tensor else temperature,
        a.get("bank_weights", [1 / elements] * len(banks)), a.get("mse_weights"), a.get("contrastive_weights"),
        a.get("query_groups"), a.get("bank_groups", []), a.get("normalize", False), gradient,
    )  # fmt: skip


def run(a: dict[str, Any], gradient: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, mse, contrastive, gradient) on the CPU; the gradient in the prediction's dtype."""
    loss, mse, contrastive, grad = diffusion_loss(*positional(to_device(a), gradient))
    return loss.cpu(), mse.cpu(), contrastive.cpu(), grad.to(a["prediction"].dtype).cpu()
