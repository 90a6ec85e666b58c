"""The op's arguments as the launchers want them: contiguous, with None for what is not there. Nothing is launched for
tensors that already fit."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton.language as tl
from contrastive_i2v.kernels.rows import INTERPRETED
from torch import Tensor

_TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(slots=True)
class Arguments:
    """See `contrastive_i2v.ops.reference.diffusion_loss_reference`; a row of latents or of a bank is a row here."""

    prediction: Tensor
    noisy: Tensor
    target: Tensor
    c_skip: Tensor
    c_out: Tensor
    banks: list[Tensor]
    positives: list[Tensor | None]
    temperature_tensor: Tensor | None
    temperature: float
    bank_weights: list[float]
    mse_weights: Tensor | None
    contrastive_weights: Tensor | None
    query_groups: Tensor | None
    bank_groups: list[Tensor | None]
    normalize: bool
    queries: int
    elements: int
    arch: int

    def candidates(self, k: int) -> int:
        return self.banks[k].shape[0]

    def exact_dot_dtype(self) -> torch.dtype:
        """The 16-bit dtype that every operand of every product has, or float32."""
        dtype = self.prediction.dtype
        return dtype if all(one.dtype == dtype for one in (self.noisy, *self.banks)) else torch.float32

    def strip_dot_dtype(self) -> torch.dtype:
        """The 16-bit dtype that the banks share with the prediction, or float32. x0 may be rounded to the prediction's
        dtype, as eager's is, whatever the noisy latents are."""
        dtype = self.prediction.dtype
        return dtype if all(bank.dtype == dtype for bank in self.banks) else torch.float32

    @staticmethod
    def triton_dtype(dtype: torch.dtype) -> tl.dtype:
        return _TRITON_DTYPES[dtype]


def read_arguments(
    prediction: Tensor,
    noisy: Tensor,
    target: Tensor,
    c_skip: Tensor,
    c_out: Tensor,
    banks: Sequence[Tensor],
    positives: Sequence[Tensor],
    temperature_tensor: Tensor | None,
    temperature: float,
    bank_weights: Sequence[float],
    mse_weights: Tensor | None,
    contrastive_weights: Tensor | None,
    query_groups: Tensor | None,
    bank_groups: Sequence[Tensor],
    normalize: bool,
) -> Arguments:
    """Raises ValueError for what a kernel cannot take, or would read out of bounds. Values are looked at on the
    CPU alone, where that costs nothing."""
    queries = prediction.shape[0]
    elements = prediction.numel() // max(queries, 1)
    latents = {"prediction": prediction, "noisy": noisy, "target": target}
    for name, tensor in (*latents.items(), *((f"banks[{k}]", bank) for k, bank in enumerate(banks))):
        if tensor.dtype not in _TRITON_DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}: the triton backend takes float32, bfloat16 and float16")
        if tensor.numel() == 0 or tensor.numel() != tensor.shape[0] * elements or tensor.device != prediction.device:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)} on {tensor.device}: expected {elements} elements a row on "
                f"{prediction.device}"
            )
    rows = {"c_skip": c_skip, "c_out": c_out, "mse_weights": mse_weights, "contrastive_weights": contrastive_weights}
    lists = {f"positives[{k}]": (one, queries) for k, one in enumerate(positives)}
    lists |= {
        f"bank_groups[{k}]": (one, bank.shape[0]) for k, (one, bank) in enumerate(zip(bank_groups, banks, strict=False))
    }
    for name, size in (("noisy", noisy.shape[0]), ("target", target.shape[0])):
        if size != queries:
            raise ValueError(f"{name} has {size} rows: expected prediction's {queries}")
    lengths = {name: (one, queries) for name, one in {**rows, "query_groups": query_groups}.items() if one is not None}
    for name, (tensor, size) in {**lengths, **lists}.items():
        if tensor.shape != (size,):
            raise ValueError(f"{name} has shape {list(tensor.shape)}: expected [{size}]")
    count = len(banks)
    if len(bank_weights) != count or len(positives) not in (0, count) or len(bank_groups) not in (0, count):
        raise ValueError(f"expected {count} bank_weights, positives and bank_groups, one a bank")
    for k, bank in enumerate(banks):
        if not positives and bank.shape[0] < queries:
            raise ValueError(f"banks[{k}] has {bank.shape[0]} rows for {queries} queries: pass positives")
    if prediction.device.type == "cpu":
        _check_values(positives, banks, temperature_tensor)
    return Arguments(
        prediction.contiguous(),
        noisy.contiguous(),
        target.contiguous(),
        c_skip.contiguous(),
        c_out.contiguous(),
        [bank.contiguous() for bank in banks],
        [one.contiguous() for one in positives] or [None] * count,
        temperature_tensor,
        float(temperature),
        list(bank_weights),
        None if mse_weights is None else mse_weights.contiguous(),
        None if contrastive_weights is None else contrastive_weights.contiguous(),
        None if query_groups is None or not bank_groups else query_groups.contiguous(),
        [one.contiguous() for one in bank_groups] if query_groups is not None and bank_groups else [None] * count,
        normalize,
        queries,
        elements,
        device_arch(prediction.device),
    )


def _check_values(positives: Sequence[Tensor], banks: Sequence[Tensor], temperature_tensor: Tensor | None) -> None:
    for k, (one, bank) in enumerate(zip(positives, banks, strict=True) if positives else ()):
        wrong = one[(one < -1) | (one >= bank.shape[0])]
        if wrong.numel():
            raise ValueError(
                f"positives[{k}] holds {int(wrong[0])}, but the bank has {bank.shape[0]} rows: expected -1 (none) or "
                "a row"
            )
    if temperature_tensor is not None and float(temperature_tensor) <= 0:
        raise ValueError(f"temperature is {float(temperature_tensor)}: expected a value > 0")


@functools.cache
def device_arch(device: torch.device) -> int:
    """90 for Hopper and later, 80 for what came before, 0 for the interpreter, where large blocks are fast."""
    if INTERPRETED.value:
        return 0
    return 90 if torch.cuda.get_device_capability(device) >= (9, 0) else 80


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs of a persistent kernel to start."""
    return 1 if INTERPRETED.value else torch.cuda.get_device_properties(device).multi_processor_count
