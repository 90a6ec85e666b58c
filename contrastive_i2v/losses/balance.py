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
    """Weighs the contrastive terms so that their gradient to the prediction is at most `ratio` times the noise loss's.

        loss     = mse + weight_t * contrastive
        n_t, c_t = ||d mse / d F||^2, ||d contrastive / d F||^2        over the batches of all ranks
        weight_t = min(ratio * sqrt(E n / max(E c, c_t)), 1e4)

    F is the network's prediction, and E a moving average over batches, this one in it, with decay 0.99 and corrected
    for its start. A batch like those before gets this ratio, and no batch pulls harder. The weight is a constant to
    autograd, and 0 where no contrastive gradient was seen. A batch with a gradient that isn't finite leaves the
    averages alone. The first gradient has a closed form and the second is what the fused op makes anyway: nothing goes
    through the network twice, nothing waits for the device, and ranks exchange two numbers.

    Args:
        ratio: > 0; 1 = the terms pull alike.

    Source: VQGAN's adaptive weight (Esser et al., 2021, arXiv:2012.09841, equation 7) and its limit of 1e4. VQGAN takes
    the gradients to the last layer, at the price of more backward passes, and a batch at a time.
    """

    averages: Tensor
    """[3], before the correction: of n, of c, and of 1."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("averages", torch.zeros(3))

    def weight(self, contrastive: Tensor | None = None) -> Tensor:
        """Scalar, on the device, for a batch with this squared norm; None = one like those before."""
        noise, usual, seen = self.averages
        largest = usual if contrastive is None else torch.maximum(usual, contrastive * seen)
        weight = self.ratio * (noise / largest).sqrt()
        return torch.where(largest > 0, weight, torch.zeros_like(weight)).clamp(max=LARGEST)

    def forward(
        self,
        contrast: Callable[[Tensor], Any],
        bank_weights: list[float],
        prediction: Tensor,
        target: Tensor,
        mse_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss, mse, contrastive [K]) as the op returns them, and the weight.

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
            weight = self.weight().to(dtype)
            return mse + weight * total, mse, out.contrastive, weight
        (contrastive,) = torch.autograd.grad(out.loss, leaf)
        with torch.no_grad():
            noise = (2 / error.numel() * rows * error).view_as(leaf)
            weight = self._observe(noise, contrastive).to(dtype)
            gradient = noise + weight * contrastive
        loss: Tensor = _WithGradient.apply(prediction, mse + weight * total, gradient)  # type: ignore[no-untyped-call]
        return loss, mse, out.contrastive, weight

    def _observe(self, noise: Tensor, contrastive: Tensor) -> Tensor:
        """Take the batch into the averages; its weight."""
        squares = torch.stack([noise.square().sum(), contrastive.square().sum()]).to(self.averages.dtype)
        squares = all_reduce(squares, dist.ReduceOp.SUM, None)
        if self.training:
            averages = torch.lerp(self.averages, torch.cat([squares, torch.ones_like(squares[:1])]), 1 - DECAY)
            self.averages.copy_(torch.where(squares.isfinite().all(), averages, self.averages))
        return self.weight(squares[1])


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
