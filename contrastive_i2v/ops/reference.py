"""The plain-torch truth of the op: the equations line by line, with every gradient written out, in float32 or
float64.

A backend is right when it agrees with this file in float64. Gradients are formula, not autograd, so nothing
of size B x N outlives the call here either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ReferenceOutput(NamedTuple):
    """What `diffusion_loss_reference` returns. A gradient that was not asked for is an empty tensor."""

    loss: Tensor  # []
    mse: Tensor  # []
    contrastive: Tensor  # [K]
    grad_prediction: Tensor  # [B, *latent], of `gradient_dtype`
    grad_banks: Tensor  # [sum of N_k, D], in the dtype of the maths
    grad_temperature: Tensor  # [], in the dtype of the maths


class BankOutput(NamedTuple):
    """One bank's cross entropy, unweighted, and its share of the gradients of the loss."""

    cross_entropy: Tensor  # [B]
    grad_prediction: Tensor | None  # [B, D]
    grad_bank: Tensor | None  # [N, D]
    grad_temperature: Tensor | None  # []


def math_dtype(prediction: Tensor) -> torch.dtype:
    """float64 stays float64 (gradient checks); everything else is computed and returned in float32."""
    return torch.float64 if prediction.dtype == torch.float64 else torch.float32


def gradient_dtype(prediction: Tensor) -> torch.dtype:
    """dtype in which the forward pass keeps dloss/dprediction until the backward pass scales it.

    float16 keeps float32: 1/(B D) puts a gradient far below float16's smallest number, and the loss scale
    that a `GradScaler` would lift it with arrives only in the backward pass. bfloat16 has float32's range and
    needs no help.
    """
    return torch.float32 if prediction.dtype == torch.float16 else prediction.dtype


def diffusion_loss_reference(
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
    prediction_gradient: bool,
    bank_gradient: bool = False,
    temperature_gradient: bool = False,
) -> ReferenceOutput:
    """`mean_i(w_i * mean_d((F - target)**2) + sum_k(lambda_k * s_i * CE_ki))` and its gradients; see
    `contrastive_i2v.ops.contrastive_diffusion_loss` for the arguments.

    Empty `positives` mean `arange(B)`, empty `bank_groups` mean no groups, `temperature_tensor` beats
    `temperature`.

    Raises:
        ValueError: for CPU tensors, a positive out of range or a temperature tensor <= 0. On other devices
            reading them would wait for the device, so there they make the loss NaN.
    """
    with _full_precision(prediction.device.type):
        dtype = math_dtype(prediction)
        size = prediction.shape[0]
        f, x, y = (tensor.reshape(size, -1).to(dtype) for tensor in (prediction, noisy, target))  # [B, D]
        tau = _checked_temperature(temperature_tensor, temperature, f)
        skip, out = c_skip.to(dtype), c_out.to(dtype)
        if normalize:
            skip, out = bounded_coefficients(skip, out)
        x0 = skip[:, None] * x + out[:, None] * f

        # Factors of a whole row are rounded to float32 once: an error in them does not average out over D.
        wide = torch.float32 if f.device.type == "mps" else torch.float64
        mse_factor = _row_weights(mse_weights, f).to(wide) / size
        contrastive_factor = _row_weights(contrastive_weights, f).to(wide) / size

        mse = (mse_factor.to(dtype) * (f - y).square().mean(1)).sum()
        loss = mse.clone()  # an op's outputs may not share memory
        grad_prediction = f.new_empty(0)
        if prediction_gradient:
            grad_prediction = (mse_factor * (2 / f.shape[1])).to(dtype)[:, None] * (f - y)
        contrastive, grad_temperature = f.new_zeros(len(banks)), f.new_zeros(())
        grad_banks: list[Tensor] = []
        for k, bank in enumerate(banks):
            row_factor = bank_weights[k] * contrastive_factor / tau.to(wide)
            one = _score_bank(
                x0,
                bank.reshape(bank.shape[0], -1).to(dtype),
                positives[k] if positives else torch.arange(size, device=x0.device),
                tau,
                row_factor * out.to(wide) if prediction_gradient else None,
                row_factor if bank_gradient or temperature_gradient else None,
                query_groups,
                bank_groups[k] if bank_groups else None,
                normalize,
            )
            contrastive[k] = (contrastive_factor.to(dtype) * one.cross_entropy).sum()
            loss += bank_weights[k] * contrastive[k]
            if one.grad_prediction is not None:
                grad_prediction += one.grad_prediction
            if one.grad_bank is not None and one.grad_temperature is not None:
                grad_banks.append(one.grad_bank)
                grad_temperature += one.grad_temperature
        return ReferenceOutput(
            loss,
            mse,
            contrastive,
            grad_prediction.to(gradient_dtype(prediction)).reshape(prediction.shape if prediction_gradient else 0),
            torch.cat(grad_banks) if bank_gradient and grad_banks else f.new_empty(0),
            grad_temperature if temperature_gradient else f.new_empty(0),
        )


def bounded_coefficients(skip: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """`c_skip, c_out` over the larger of the two: the cosine does not see a row's scale, and abar -> 0 no
    longer overflows the squared norm of x0."""
    gain = torch.maximum(skip.abs(), out.abs())
    gain = torch.where(gain == 0, torch.ones_like(gain), gain)
    return skip / gain, out / gain


def _score_bank(
    x0: Tensor,  # [B, D]
    bank: Tensor,  # [N, D]
    positives: Tensor,  # [B]
    tau: Tensor,  # [], the temperature
    prediction_factor: Tensor | None,  # [B], wide: lambda s_i c_out_i / (tau B), where its gradient is asked for
    row_factor: Tensor | None,  # [B], wide: lambda s_i / (tau B), where the bank's or tau's gradient is
    query_groups: Tensor | None,  # [B]
    bank_groups: Tensor | None,  # [N]
    normalize: bool,
) -> BankOutput:
    """Cross entropy of one bank and, where asked, its gradients."""
    candidates = bank.shape[0]
    in_range = (positives >= -1) & (positives < candidates)
    if _values_are_readable(positives) and not bool(in_range.all()):
        wrong = int(positives[~in_range][0])
        raise ValueError(f"positives holds {wrong}, but the bank has {candidates} rows: expected -1 (none) or a row")
    has_positive = (positives >= 0) & in_range
    index = positives.clamp(0, candidates - 1)[:, None]  # [B, 1]

    similarity = x0 @ bank.T  # [B, N]
    if normalize:
        x0_scale, bank_scale = _inverse_norm(x0), _inverse_norm(bank)
        similarity = similarity * x0_scale[:, None] * bank_scale
    logits = similarity / tau

    candidate_logits = logits
    if query_groups is not None and bank_groups is not None:
        is_positive = torch.arange(candidates, device=x0.device) == index
        false_negative = (query_groups[:, None] == bank_groups) & ~is_positive
        candidate_logits = logits.masked_fill(false_negative, -torch.inf)

    positive_logit = logits.gather(1, index)
    maximum = torch.where(has_positive[:, None], candidate_logits, logits).amax(1, keepdim=True)
    others = torch.exp(candidate_logits - maximum).scatter(1, index, 0.0)
    rest = others.sum(1, keepdim=True)
    total = rest + torch.exp(positive_logit - maximum)
    # Both forms are sums of terms >= 0; log1p keeps a saturated row's small loss.
    cross_entropy = torch.where(
        positive_logit == maximum, torch.log1p(rest), maximum - positive_logit + torch.log(total)
    ).squeeze(1)
    # The zero-weighted sum lets a NaN or infinity reach the loss even from a candidate that the softmax
    # ignores.
    cross_entropy = torch.where(has_positive, cross_entropy, 0.0) + (0 * logits).sum(1)
    cross_entropy = torch.where(in_range, cross_entropy, torch.nan)

    # p - y, where 1 - p of the positive is the sum of the others: no cancellation when the softmax saturates.
    residual = (others / total).scatter(1, index, -rest / total)  # [B, N]
    residual = torch.where(has_positive[:, None], residual, 0.0)
    pulled = residual * similarity
    grad_prediction = grad_bank = grad_temperature = None
    if prediction_factor is not None and normalize:
        pull = (pulled.sum(1) * x0_scale)[:, None]
        grad_prediction = (residual * bank_scale) @ bank - pull * x0
        grad_prediction *= (prediction_factor * x0_scale).to(x0.dtype)[:, None]
    elif prediction_factor is not None:
        grad_prediction = prediction_factor.to(x0.dtype)[:, None] * (residual @ bank)
    if row_factor is not None:
        factor = row_factor.to(x0.dtype)[:, None]
        grad_temperature = -(factor * pulled).sum() / tau
        if normalize:
            grad_bank = (factor * residual * x0_scale[:, None] * bank_scale).T @ x0
            grad_bank -= ((factor * pulled).sum(0) * bank_scale.square())[:, None] * bank
        else:
            grad_bank = (factor * residual).T @ x0
    return BankOutput(cross_entropy, grad_prediction, grad_bank, grad_temperature)


def _values_are_readable(tensor: Tensor) -> bool:
    """Whether looking at values costs nothing; on a GPU it would wait for the device, or break a CUDA
    graph."""
    return tensor.device.type == "cpu"


def _inverse_norm(rows: Tensor) -> Tensor:
    """1/|row|, and 0 for a zero row: its cosines are 0 and no gradient flows through it."""
    norm = rows.norm(dim=1)
    return torch.where(norm == 0, torch.zeros_like(norm), 1 / norm)


def _row_weights(weights: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones(like.shape[0]) if weights is None else weights.to(like.dtype)


def _checked_temperature(temperature_tensor: Tensor | None, temperature: float, like: Tensor) -> Tensor:
    if temperature_tensor is None:
        return like.new_full((), temperature)
    tau = temperature_tensor.to(like.dtype).reshape(())
    if _values_are_readable(tau) and bool(tau <= 0):
        raise ValueError(f"temperature is {float(tau)}: expected a value > 0")
    # An infinite one would be a flat softmax, silently.
    return torch.where((tau <= 0) | tau.isinf(), torch.nan, tau)


@contextlib.contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """float32 maths is float32: no autocast, and no TF32 or bfloat16 inside float32 matrix products, because
    logits reach tens of thousands and ten bits of mantissa would leave errors of tens in them."""
    with torch.autocast(device_type, enabled=False):
        before = torch.get_float32_matmul_precision()
        if before == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
