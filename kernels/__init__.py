"""Triton kernels with their launchers, imported as `contrastive_i2v.kernels`. Needs torch; triton only where a kernel
runs. With TRITON_INTERPRET=1, set before triton is imported, they run on CPU tensors.

Unverified on hardware: checked by the interpreter, and by compiling for sm_80 and sm_90 ahead of time.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

__all__ = ["diffusion_loss", "why_unavailable"]


def why_unavailable() -> str:
    """Why the kernels cannot run here; "" when they can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return "torch sees no CUDA device, and TRITON_INTERPRET=1 is not set"


def diffusion_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, mse, contrastive [K], grad_prediction) from the arguments of the op `contrastive_i2v::diffusion_loss`, in
    its order. A positive out of range or a temperature that is not a finite number > 0 makes the loss NaN; values are
    never read by the host."""
    from contrastive_i2v.kernels.dispatch import diffusion_loss

    return diffusion_loss(*arguments)
