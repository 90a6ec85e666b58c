"""The trained network against its frozen start, as a classifier of truth and own samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError


class OwnSampleOutput(NamedTuple):
    """`loss = weight * (real + own)`, to be added to the diffusion loss."""

    loss: Tensor
    """Scalar float32, differentiable."""
    real: Tensor
    """Scalar float32, detached: mean of -log sigmoid(beta (e_ref(x) - e(x))), log 2 at the reference."""
    own: Tensor | None
    """Scalar float32, detached: mean of -log sigmoid(-beta (e_ref(y) - e(y))); None with `positive_only`."""


class OwnSampleContrast(nn.Module):
    """Direct Discriminative Optimization for diffusion models, beside the diffusion loss.

        e(z)  = mean_d (F(z_t) - target(z))^2               z is x, true latents, or y, the model's own sample
        loss  = -weight / sum_i w_i * sum_i w_i [ log sigmoid( beta (e_ref(x_i) - e(x_i)))
                                                + log sigmoid(-beta (e_ref(y_i) - e(y_i))) ]

    -beta (e - e_ref) stands for log p / p_ref, so the network and its frozen reference together are a classifier of
    truth and own samples. x and y share timestep, noise and condition: y is what the reference, or the network a little
    earlier, generated in x's place, say some frames into a rollout. Works for every prediction type. Its gain is in
    part a larger scale of the prediction, which a calibrated sampler has for free: compare calibrated models.

    The module knows no network and has no parameters: it takes predictions, four of them.

    Args:
        scheduler_config: a diffusers `scheduler.config`, or a `NoiseSchedule`.
        beta: how fast a difference of errors saturates; per element, so it doesn't depend on the size of latents.
        weight: of the loss.
        positive_only: leave the second term out: a control without any negative.

    Raises:
        InputError: a setting out of range, or predictions that don't fit `positive_only`.

    Source: Zheng et al., "Direct Discriminative Optimization: Your Likelihood-Based Visual Generative Model is Secretly
    a GAN Discriminator" (arXiv 2503.01103); that x and y share noise and timestep is ours.
    """

    def __init__(
        self,
        scheduler_config: Mapping[str, Any] | NoiseSchedule,
        *,
        beta: float = 5.0,
        weight: float = 0.3,
        positive_only: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(scheduler_config, NoiseSchedule):
            scheduler_config = NoiseSchedule.from_config(scheduler_config)
        for name, value in (("beta", beta), ("weight", weight)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value}; expected a number > 0")
        self.schedule, self.beta, self.weight, self.positive_only = scheduler_config, beta, weight, positive_only

    def forward(
        self,
        timesteps: Tensor,
        noise: Tensor,
        clean_latents: Tensor,
        prediction: Tensor,
        reference: Tensor,
        *,
        own_latents: Tensor | None = None,
        own_prediction: Tensor | None = None,
        own_reference: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> OwnSampleOutput:
        """Loss of one batch.

        Args:
            timesteps: [B].
            noise: [B, *latent], of x_t and y_t both.
            clean_latents: [B, *latent], x.
            prediction: [B, *latent] of the network on `schedule.add_noise(x, noise, t)`; it gets a gradient.
            reference: [B, *latent] of the frozen reference on the same.
            own_latents: [B, *latent], y. This and the next two are left out with `positive_only`.
            own_prediction: [B, *latent] of the network on `schedule.add_noise(y, noise, t)`; it gets a gradient.
            own_reference: [B, *latent] of the reference on the same.
            weights: [B] >= 0, w; None = 1. Rows of which a part of the condition was dropped belong at 0, since y was
                made with all of it. All 0: the loss is 0.
        """
        own = (own_latents, own_prediction, own_reference)
        if any((part is None) != self.positive_only for part in own):
            raise InputError(
                f"own_latents, own_prediction, own_reference: expected {'none' if self.positive_only else 'all'} of "
                f"them with positive_only={self.positive_only}"
            )
        weights = torch.ones(len(noise), device=noise.device) if weights is None else weights.float()
        total = weights.sum().clamp_min(torch.finfo(torch.float32).tiny)

        def term(clean: Tensor, predicted: Tensor, frozen: Tensor, sign: float) -> Tensor:
            target = self.schedule.target(clean, noise, timesteps)
            ratio = _error(frozen.detach(), target) - _error(predicted, target)  # [B]
            return -(weights * F.logsigmoid(sign * self.beta * ratio)).sum() / total

        real = term(clean_latents, prediction, reference, 1.0)
        if own_latents is None or own_prediction is None or own_reference is None:
            return OwnSampleOutput(self.weight * real, real.detach(), None)
        against = term(own_latents, own_prediction, own_reference, -1.0)
        return OwnSampleOutput(self.weight * (real + against), real.detach(), against.detach())

    def extra_repr(self) -> str:
        """The settings, for print(module)."""
        return f"beta={self.beta}, weight={self.weight}, positive_only={self.positive_only}"


def _error(prediction: Tensor, target: Tensor) -> Tensor:
    """[B], in float32 at least."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(1)
