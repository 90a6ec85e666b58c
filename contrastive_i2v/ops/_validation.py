"""Checks of the ops' arguments that need only shapes, dtypes and devices, so they hold under tracing and
never wait for a device. Each raises a ValueError that names the argument, its value and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_RANGES = {dtype: (torch.finfo(dtype).tiny, torch.finfo(dtype).max) for dtype in (torch.float32, torch.float64)}


def latents(prediction: Tensor, noisy: Tensor, target: Tensor) -> None:
    """`prediction` is [B, *latent] with B, D > 0 and `noisy`, `target` are like it."""
    floating("prediction", prediction)
    if prediction.dim() < 2 or prediction.numel() == 0:
        raise ValueError(f"prediction has shape {_shape(prediction)}: expected [B, *latent] with at least one element")
    for name, tensor in (("noisy", noisy), ("target", target)):
        floating(name, tensor)
        same_device(name, tensor, prediction)
        if tensor.shape != prediction.shape:
            raise ValueError(f"{name} has shape {_shape(tensor)}: expected prediction's {_shape(prediction)}")


def bank_list(prediction: Tensor, banks: Sequence[Tensor] | Tensor) -> None:
    """Every bank is [N_k, *latent] with N_k > 0."""
    if isinstance(banks, Tensor):
        raise ValueError("banks is one tensor: expected a sequence of tensors, so pass [bank]")
    _sequence("banks", banks, "tensors")
    for k, bank in enumerate(banks):
        name = f"banks[{k}]"
        floating(name, bank)
        same_device(name, bank, prediction)
        if bank.shape[1:] != prediction.shape[1:] or bank.dim() == 0:
            raise ValueError(f"{name} has shape {_shape(bank)}: expected [N, *{_shape(prediction)[1:]}]")
        if bank.shape[0] == 0:
            raise ValueError(f"{name} is empty: expected at least one row")


def row_vector(prediction: Tensor, name: str, vector: Tensor) -> None:
    """`vector` is floating [B]."""
    floating(name, vector)
    same_device(name, vector, prediction)
    if vector.shape != prediction.shape[:1]:
        raise ValueError(f"{name} has shape {_shape(vector)}: expected [{prediction.shape[0]}], one value a query")


def no_gradient(**tensors: Tensor) -> None:
    """None of these gets a gradient, and a silent zero would hide that."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, but only prediction, banks and temperature get one: detach it"
            )


def split_temperature(prediction: Tensor, temperature: float | Tensor) -> tuple[float, Tensor | None]:
    """(number, tensor or None): the op takes the tensor where there is one."""
    if isinstance(temperature, Tensor):
        floating("temperature", temperature)
        same_device("temperature", temperature, prediction)
        if temperature.numel() != 1:
            raise ValueError(f"temperature has shape {_shape(temperature)}: expected one element")
        return 1.0, temperature
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    try:
        usable = fits(temperature, dtype)
    except TypeError:
        usable = False
    if not usable:
        raise ValueError(
            f"temperature is {_said(temperature)}: expected a finite number > 0 that {dtype} holds, or a tensor of one"
        )
    return float(temperature), None


def fits(number: float, dtype: torch.dtype) -> bool:
    """Whether a number > 0 stays finite and > 0 in `dtype`."""
    low, high = _RANGES[dtype]
    return low <= number <= high


def numbers(name: str, values: Sequence[float] | Tensor, banks: Sequence[Tensor]) -> list[float]:
    """One number a bank, as floats."""
    if isinstance(values, Tensor) and values.dim() != 1:
        raise ValueError(f"{name} has shape {_shape(values)}: expected {len(banks)} numbers, one a bank")
    _sequence(name, values, "numbers")
    length(name, values, banks)
    return [number(f"{name}[{k}]", value) for k, value in enumerate(values)]


def number(name: str, value: Any) -> float:
    """One number, as a float."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} has shape {_shape(value)}: expected one number")
    if isinstance(value, Tensor) and (value.is_meta or value.is_complex()):
        raise ValueError(f"{name} is a {value.dtype} on {value.device}: expected a number")
    if isinstance(value, str):
        raise ValueError(f"{name} is {_said(value)}: expected a number")
    try:
        return float(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} is {_said(value)}: expected a number") from error


def count(name: str, value: int) -> None:
    """A whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise ValueError(f"{name} is {_said(value)}: expected a whole number >= 1")
    if value < 1:
        raise ValueError(f"{name} is {value}: expected at least 1")


def floating(name: str, tensor: Tensor) -> None:
    """A tensor of floating point numbers that lie in memory by strides."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is {_said(tensor)}: expected a tensor")
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"{name} is {tensor.dtype}: expected float32, bfloat16, float16 or float64")
    _strided(name, tensor)


def same_device(name: str, tensor: Tensor, other: Tensor, of: str = "prediction") -> None:
    """`tensor` is where `other` is, which is called `of`."""
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}: expected {of}'s device, {other.device}")


def flag(name: str, value: object) -> None:
    """True or False."""
    if isinstance(value, Tensor) or value not in (True, False):
        raise ValueError(f"{name} is {_said(value)}: expected True or False")


def length(name: str, values: Sequence[object] | Tensor, banks: Sequence[Tensor]) -> None:
    """One value a bank."""
    if len(values) != len(banks):
        raise ValueError(f"{name} has {len(values)} entries: expected {len(banks)}, one a bank")


def index_lists(
    prediction: Tensor,
    name: str,
    lists: Sequence[Tensor | None] | Tensor | None,
    banks: Sequence[Tensor],
    sizes: list[int],
) -> list[Tensor | None]:
    """One int64 tensor [sizes[k]], or None, a bank."""
    if lists is None:
        return [None] * len(banks)
    if isinstance(lists, Tensor):
        raise ValueError(f"{name} is one tensor: expected a sequence of int64 tensors, one a bank, so pass [{name}]")
    _sequence(name, lists, "int64 tensors")
    length(name, lists, banks)
    for k, index in enumerate(lists):
        if index is not None:
            _index(prediction, f"{name}[{k}]", index, sizes[k])
    return list(lists)


def default_positives(prediction: Tensor, banks: Sequence[Tensor], positives: Sequence[Tensor | None]) -> None:
    """`arange(B)` needs a row for every query."""
    size = prediction.shape[0]
    for k, (bank, positive) in enumerate(zip(banks, positives, strict=True)):
        if positive is None and bank.shape[0] < size:
            raise ValueError(
                f"positives are not given for banks[{k}], so query i matches row i, but it has "
                f"{bank.shape[0]} rows for {size} queries: pass positives"
            )


def groups_together(prediction: Tensor, query_groups: Tensor | None, bank_groups: object | None) -> None:
    """`query_groups` [B] and `bank_groups` come together."""
    if (query_groups is None) != (bank_groups is None):
        missing, given = ("query_groups", "bank_groups") if query_groups is None else ("bank_groups", "query_groups")
        raise ValueError(f"{missing} is None while {given} is given: expected both or neither")
    if query_groups is not None:
        _index(prediction, "query_groups", query_groups, prediction.shape[0])


def _index(prediction: Tensor, name: str, index: Tensor, size: int) -> None:
    if not isinstance(index, Tensor):
        raise ValueError(f"{name} is {_said(index)}: expected an int64 tensor")
    if index.dtype != torch.int64:
        raise ValueError(f"{name} is {index.dtype}: expected torch.int64")
    _strided(name, index)
    same_device(name, index, prediction)
    if index.shape != (size,):
        raise ValueError(f"{name} has shape {_shape(index)}: expected [{size}]")


def _strided(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} has the layout {tensor.layout}: expected torch.strided, as to_dense() gives")


def _sequence(name: str, values: object, of: str) -> None:
    if isinstance(values, (list, tuple)):
        return
    if hasattr(values, "__len__") and hasattr(values, "__getitem__") and not isinstance(values, (str, bytes, Mapping)):
        return
    raise ValueError(f"{name} is {_said(values)}: expected a sequence of {of}, one a bank")


def _said(value: object) -> str:
    """A number or a text as it is, anything else by its type."""
    return repr(value)[:60] if isinstance(value, (int, float, str)) else type(value).__name__


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
