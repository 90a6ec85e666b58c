"""The weight of the contrastive terms from the norms of gradients, in place of one that a sweep would find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contrastive_i2v.losses._collectives import all_reduce
from contrastive_i2v.ops.reference import math_dtype

DECAY = 0.99
LARGEST = 1e4


class GradientBalance(nn.Module):
    """Weighs the contrastive terms so that their gradient to the prediction is `ratio` times the noise loss's.

        loss   = mse + weight * contrastive
        weight = min(ratio * sqrt(E ||d mse / d F||^2 / E ||d contrastive / d F||^2), 1e4)

    F is the network's prediction, and the norms are over the batches of all ranks. E is a moving average over batches
    with decay 0.99, this one in it; both averages start at zero, which cancels. The weight is a constant to autograd,
    and 0 where no contrastive gradient was seen. A batch with a gradient that isn't finite leaves the averages alone.
    The first gradient has a closed form and the second is what the fused op makes anyway: nothing goes through the
    network twice, nothing waits for the device, and ranks exchange two numbers.

    Args:
        ratio: > 0; 1 = the terms pull alike.

    Source: VQGAN's adaptive weight (Esser et al., 2021, arXiv:2012.09841, equation 7) and its limit of 1e4. VQGAN takes
    the gradients to the last layer, at the price of more backward passes.
    """

    norms: Tensor
    """[2]: the averages of the squared norms, the noise loss's first."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("norms", torch.zeros(2))

    @property
    def weight(self) -> Tensor:
        """Scalar, on the device."""
        noise, contrastive = self.norms
        weight = self.ratio * (noise / contrastive).sqrt()
        return torch.where(contrastive > 0, weight, torch.zeros_like(weight)).clamp(max=LARGEST)

    def forward(
        self,
        contrast: Callable[[Tensor], Any],
        bank_weights: list[float],
        prediction: Tensor,
        target: Tensor,
        mse_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, mse, contrastive [K]) as the op returns them, with the balanced weight.

        Args:
            contrast: from a prediction to the op's output without the noise loss.
            bank_weights: K numbers lambda_k; contrastive = sum_k lambda_k contrastive_k.
            prediction, target: [B, *latent].
            mse_weights: [B], or None for 1.
        """
        dtype = math_dtype(prediction)
        learns = torch.is_grad_enabled() and prediction.requires_grad
        leaf = prediction.detach().to(dtype).requires_grad_(learns)
        out = contrast(leaf)
        with torch.no_grad():
            error = (leaf - target.to(dtype)).flatten(1)  # [B, D]
            rows = 1.0 if mse_weights is None else mse_weights.to(dtype)[:, None]
            mse = (rows * error.square()).mean()
            total = sum((weight * value for weight, value in zip(bank_weights, out.contrastive, strict=True)), 0 * mse)
        if not learns:
            return mse + self.weight.to(dtype) * total, mse, out.contrastive
        (contrastive,) = torch.autograd.grad(out.loss, leaf)
        with torch.no_grad():
            noise = (2 / error.numel() * rows * error).view_as(leaf)
            if self.training:
                self._observe(noise, contrastive)
            weight = self.weight.to(dtype)
            gradient = noise + weight * contrastive
        loss: Tensor = _WithGradient.apply(prediction, mse + weight * total, gradient)  # type: ignore[no-untyped-call]
        return loss, mse, out.contrastive

    def _observe(self, noise: Tensor, contrastive: Tensor) -> None:
        squares = torch.stack([noise.square().sum(), contrastive.square().sum()]).to(self.norms.dtype)
        squares = all_reduce(squares, dist.ReduceOp.SUM, None)
        averages = torch.lerp(self.norms, squares, 1 - DECAY)
        self.norms.copy_(torch.where(squares.isfinite().all(), averages, self.norms))


class _WithGradient(torch.autograd.Function):
    """A value whose gradient to the prediction is known."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = prediction.dtype
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return torch.ops.contrastive_i2v.scale_gradient(gradient, grad_loss, ctx.dtype), None, None
