"""In which precision a run computes: what "auto" comes to, and whether float32 products round to TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import TrainConfig


def resolved(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The config with what mixed_precision "auto" is on a device: bf16 on a GPU that has it, else no.

    Raises InputError for TF32 on a device that has none.
    """
    if config.tf32 and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise InputError(f"tf32: there is none on {device.type} here (NVIDIA GPUs since Ampere have it); leave it off")
    if config.mixed_precision != "auto":
        return config
    has = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(config, mixed_precision="bf16" if has else "no")


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Let CUDA products and convolutions of float32 round their factors to TF32, or neither; afterwards as before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
