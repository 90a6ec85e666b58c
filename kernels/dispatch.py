"""Picks the regime by size and owns the results."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from contrastive_i2v.kernels.arguments import Arguments, read_arguments
from contrastive_i2v.kernels.large import run_large
from contrastive_i2v.kernels.small import run_small
from torch import Tensor

MAX_SMALL_LOGITS = 1 << 19  # such as 512 queries against two banks of 512


def is_small(a: Arguments) -> bool:
    """Whether the three small kernels take it: few logits, at most two banks, of one dtype."""
    if len(a.banks) > 2 or len({bank.dtype for bank in a.banks}) > 1:
        return False
    return not a.banks or a.queries * sum(bank.shape[0] for bank in a.banks) <= MAX_SMALL_LOGITS


def diffusion_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `contrastive_i2v.kernels.diffusion_loss`."""
    *inputs, with_gradient = arguments
    prediction = inputs[0]
    a = read_arguments(*inputs)
    loss, mse = (torch.empty((), dtype=torch.float32, device=prediction.device) for _ in range(2))
    contrastive = torch.empty(len(a.banks), dtype=torch.float32, device=prediction.device)
    dtype = torch.float32 if prediction.dtype == torch.float16 else prediction.dtype
    gradient = torch.empty(prediction.shape if with_gradient else 0, dtype=dtype, device=prediction.device)
    with torch.cuda.device_of(prediction) if prediction.is_cuda else contextlib.nullcontext():
        run = run_small if is_small(a) else run_large
        run(a, loss, mse, contrastive, gradient if with_gradient else None)
    return loss, mse, contrastive, gradient
