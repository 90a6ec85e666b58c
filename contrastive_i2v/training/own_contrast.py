"""Own samples against the truth, in the trainer: the passes that the loss needs beside the usual one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_i2v.losses import OwnSampleContrast, OwnSampleOutput
from contrastive_i2v.training.inputs import Inputs


class OwnContrast:
    """`OwnSampleContrast` on the rows of a batch that have own samples, a row a window.

    The network sees the batch and, beside it in the same call, the own samples with the noise, timestep and condition
    of their truths; so one backward pass serves both, and several processes meet as often as without. The reference
    sees the same without a gradient.

    Args:
        loss: the loss.
        reference: the frozen network that training started from.
    """

    def __init__(self, loss: OwnSampleContrast, reference: nn.Module) -> None:
        self.loss, self.reference = loss, reference.requires_grad_(False).eval()

    def __call__(
        self, network: Callable[..., Tensor], inputs: Inputs, own: Tensor, autocast: Callable[[], Any]
    ) -> tuple[Tensor, OwnSampleOutput]:
        """The prediction `[B, G, C, h, w]` of the batch, and the loss of its last k rows.

        Args:
            own: `[k, G, C, h, w]`, the last k rows' own samples, k >= 1.
        """
        size, count = len(inputs.noisy_latents), len(own)
        noise, timesteps = inputs.noise[-count:], inputs.timesteps[-count:]
        noisy, times, condition = inputs.noisy_latents, inputs.timesteps, inputs.condition
        if not self.loss.positive_only:
            noisy = torch.cat([noisy, self.loss.schedule.add_noise(own, noise, timesteps)])
            times = torch.cat([times, timesteps])
            condition = {name: torch.cat([value, value[-count:]]) for name, value in condition.items()}
        first = size - count  # of the rows that the reference sees
        with autocast():
            predictions = network(noisy, times, **condition)
            with torch.no_grad():
                seen = {name: value[first:] for name, value in condition.items()}
                reference = self.reference(noisy[first:], times[first:], **seen)
        extra = {}
        if not self.loss.positive_only:
            extra = {"own_latents": own, "own_prediction": predictions[size:], "own_reference": reference[count:]}
        output = self.loss(
            timesteps,
            noise,
            inputs.clean_latents[-count:],
            predictions[first:size],
            reference[:count],
            weights=inputs.whole[-count:],
            **extra,
        )
        return predictions[:size], output
