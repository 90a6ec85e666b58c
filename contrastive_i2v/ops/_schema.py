"""Registration of the ops: schemas, fallback kernels, fake kernels, autograd.

`diffusion_loss` is the fused op that C++ and CUDA implement, one kernel a device; without one it runs the
reference. `diffusion_loss_triton` is the same in Triton. `diffusion_loss_reference` is always the reference, and
also has the gradients to the banks and the temperature. All make the gradient in the forward pass; the backward
pass only scales it, through `scale_gradient`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.kernels import diffusion_loss as diffusion_loss_triton
from contrastive_i2v.ops.reference import diffusion_loss_reference, gradient_dtype, math_dtype

NAMESPACE = "contrastive_i2v"

_ARGUMENTS = (
    "Tensor prediction, Tensor noisy, Tensor target, Tensor c_skip, Tensor c_out, Tensor[] banks, "
    "Tensor[] positives, Tensor? temperature_tensor, float temperature, float[] bank_weights, "
    "Tensor? mse_weights, Tensor? contrastive_weights, Tensor? query_groups, Tensor[] bank_groups, "
    "bool normalize, bool prediction_gradient"
)
_RETURNS = "Tensor loss, Tensor mse, Tensor contrastive, Tensor grad_prediction"
_BANKS, _TEMPERATURE, _INPUTS = 5, 7, 16

torch.library.define(f"{NAMESPACE}::diffusion_loss", f"({_ARGUMENTS}) -> ({_RETURNS})")
torch.library.define(f"{NAMESPACE}::diffusion_loss_triton", f"({_ARGUMENTS}) -> ({_RETURNS})")
torch.library.define(
    f"{NAMESPACE}::diffusion_loss_reference",
    f"({_ARGUMENTS}, bool bank_gradient, bool temperature_gradient) -> "
    f"({_RETURNS}, Tensor grad_banks, Tensor grad_temperature)",
)
torch.library.define(f"{NAMESPACE}::scale_gradient", "(Tensor gradient, Tensor grad_loss, ScalarType dtype) -> Tensor")


@torch.library.impl(f"{NAMESPACE}::diffusion_loss", "CompositeExplicitAutograd")
def _diffusion_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _require_strided(arguments)
    out = diffusion_loss_reference(*arguments)
    return out.loss, out.mse, out.contrastive, out.grad_prediction


@torch.library.impl(f"{NAMESPACE}::diffusion_loss_triton", "CompositeExplicitAutograd")
def _diffusion_loss_triton(*arguments: Any) -> tuple[Tensor, ...]:
    return diffusion_loss_triton(*arguments)  # type: ignore[no-any-return]


@torch.library.impl(f"{NAMESPACE}::diffusion_loss_reference", "CompositeExplicitAutograd")
def _diffusion_loss_reference(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(diffusion_loss_reference(*arguments))


@torch.library.impl(f"{NAMESPACE}::scale_gradient", "CompositeExplicitAutograd")
def _scale_gradient(gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    # In grad_loss's own float32: float16 cannot hold a loss scale of 65536, bfloat16 rounds one third.
    return (gradient.to(grad_loss.dtype) * grad_loss).to(dtype)


def _diffusion_loss_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    prediction, banks, prediction_gradient = arguments[0], arguments[_BANKS], arguments[_INPUTS - 1]
    _require_one_device(prediction, arguments)
    dtype = math_dtype(prediction)
    return (
        prediction.new_empty((), dtype=dtype),
        prediction.new_empty((), dtype=dtype),
        prediction.new_empty(len(banks), dtype=dtype),
        prediction.new_empty(prediction.shape if prediction_gradient else 0, dtype=gradient_dtype(prediction)),
    )


def _require_strided(arguments: Sequence[Any]) -> None:
    """A single sparse tensor among others brings a call here, past the kernel's checks."""
    for tensor in _tensors(arguments):
        if tensor.layout != torch.strided:
            raise ValueError(f"an argument has the layout {tensor.layout}: expected torch.strided")


def _require_one_device(prediction: Tensor, arguments: Sequence[Any]) -> None:
    """A single meta tensor among others brings a real call here, whose outputs nobody would ever fill."""
    for tensor in _tensors(arguments):
        if tensor.device != prediction.device:
            raise ValueError(f"an argument is on {tensor.device}: expected prediction's device, {prediction.device}")


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        for one in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(one, Tensor):
                yield one


def _diffusion_loss_reference_fake(*arguments: Any) -> tuple[Tensor, ...]:
    prediction, banks = arguments[0], arguments[_BANKS]
    bank_gradient, temperature_gradient = arguments[_INPUTS:]
    dtype = math_dtype(prediction)
    rows = sum(bank.shape[0] for bank in banks)
    return (
        *_diffusion_loss_fake(*arguments[:_INPUTS]),
        prediction.new_empty((rows, prediction[0].numel()) if bank_gradient and banks else 0, dtype=dtype),
        prediction.new_empty(() if temperature_gradient else 0, dtype=dtype),
    )


def _scale_gradient_fake(gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


class _GradientOfForward(torch.autograd.Function):
    """The gradient that the op's forward pass has already made, scaled by the incoming one.

    Registered by hand: `torch.library.register_autograd` walks the whole schema in Python on every call,
    which costs more than a small problem's kernel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        op: Any,
        arguments: tuple[Any, ...],
        prediction: Tensor,
        temperature: Tensor | None,
        *banks: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            out: tuple[Tensor, ...] = op(*arguments)
        ctx.mark_non_differentiable(*out[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*out[3:])
        ctx.computed = (*arguments[_INPUTS - 1 :], False, False)[:3]
        ctx.prediction_dtype = prediction.dtype
        ctx.temperature = None if temperature is None else (temperature.shape, temperature.dtype)
        ctx.banks = [(bank.shape, bank.dtype) for bank in banks]
        return out

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # create_graph=True: what follows would silently lack the prediction's part
            raise RuntimeError(
                "contrastive_diffusion_loss has no second derivative, as its gradient is made in the forward "
                "pass: call backward without create_graph=True"
            )
        needs_prediction, needs_temperature, *needs_banks = ctx.needs_input_grad[2:]
        names = ("prediction", "banks", "temperature")
        needs = (needs_prediction, any(needs_banks), needs_temperature)
        for name, needed, computed in zip(names, needs, ctx.computed, strict=True):
            if needed and not computed:
                raise RuntimeError(f"{name} requires a gradient that this call was told not to compute")
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if grad_loss is None:
            return tuple(grads)
        scale = torch.ops.contrastive_i2v.scale_gradient
        saved = ctx.saved_tensors
        if needs_prediction:
            grads[2] = scale(saved[0], grad_loss, ctx.prediction_dtype)
        if needs_temperature:
            shape, dtype = ctx.temperature
            grads[3] = scale(saved[2], grad_loss, dtype).reshape(shape)
        if any(needs_banks):
            rows = saved[1].split([shape[0] for shape, _ in ctx.banks])
            for k, (shape, dtype) in enumerate(ctx.banks):
                if needs_banks[k]:
                    grads[4 + k] = scale(rows[k], grad_loss, dtype).reshape(shape)
        return tuple(grads)


def _register_autograd(name: str) -> None:
    op = getattr(torch.ops.contrastive_i2v, name).default

    @torch.library.impl(f"{NAMESPACE}::{name}", "Autograd")
    def _differentiable(*arguments: Any) -> tuple[Tensor, ...]:
        prediction, temperature, banks = arguments[0], arguments[_TEMPERATURE], arguments[_BANKS]
        if torch.is_grad_enabled():
            apply: Any = _GradientOfForward.apply
            return apply(op, arguments, prediction, temperature, *banks)  # type: ignore[no-any-return]
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)  # type: ignore[no-any-return]


torch.library.register_fake(f"{NAMESPACE}::diffusion_loss", _diffusion_loss_fake)
torch.library.register_fake(f"{NAMESPACE}::diffusion_loss_triton", _diffusion_loss_fake)
torch.library.register_fake(f"{NAMESPACE}::diffusion_loss_reference", _diffusion_loss_reference_fake)
torch.library.register_fake(f"{NAMESPACE}::scale_gradient", _scale_gradient_fake)
_register_autograd("diffusion_loss")
_register_autograd("diffusion_loss_triton")
_register_autograd("diffusion_loss_reference")
