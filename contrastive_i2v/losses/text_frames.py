"""A bank of captions: their learned projections into the latent space, against which reconstructed latents are told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError
from contrastive_i2v.ops import contrastive_diffusion_loss


class TextFrameOutput(NamedTuple):
    """`loss = weight * contrastive`, to be added to the diffusion loss."""

    loss: Tensor
    """Scalar float32, differentiable."""
    contrastive: Tensor
    """Scalar float32, detached: the gated cross entropy."""


class TextFrameLoss(nn.Module):
    """A cross entropy that singles out a latent's own caption among those of the batch.

        z_j   = W f_j + b                                     a "text frame", f_j the features of caption j
        x0_i  = c_skip_i * x_t,i + c_out_i * F_i
        l_ij  = <x0_i, z_j> / (|x0_i| |z_j| temperature)
        loss  = weight / B sum_i s_i CE(l_i, caption of i)    s_i = alphas_cumprod (flow: (1 - s)^2)

    The gradient goes to the prediction and, through the op, to W and b, so that text and latents meet in one space.
    Captions that are equal, and captions of one video, are one group: not each other's negatives, also where that
    follows in several steps (`joint_groups`). A latent whose caption was dropped has no positive, so no term.

    Args:
        scheduler_config: a diffusers `scheduler.config`, or a `NoiseSchedule`.
        features: of a caption, E.
        latent_shape: of a latent.
        weight: of the loss.
        temperature: of the cosines.

    Raises:
        InputError: a weight or a temperature that isn't a number > 0.
    """

    def __init__(
        self,
        scheduler_config: Mapping[str, Any] | NoiseSchedule,
        features: int,
        latent_shape: Sequence[int],
        *,
        weight: float = 0.2,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if not isinstance(scheduler_config, NoiseSchedule):
            scheduler_config = NoiseSchedule.from_config(scheduler_config)
        for name, value in (("weight", weight), ("temperature", temperature)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value}; expected a number > 0")
        self.schedule, self.weight, self.temperature = scheduler_config, weight, temperature
        self.latent_shape = tuple(latent_shape)
        self.projection = nn.Linear(features, math.prod(latent_shape))

    def text_frames(self, features: Tensor) -> Tensor:
        """[N, E] -> [N, *latent]."""
        frames: Tensor = self.projection(features.float())
        return frames.view(len(features), *self.latent_shape)

    def forward(
        self,
        prediction: Tensor,
        noisy_latents: Tensor,
        timesteps: Tensor,
        features: Tensor,
        groups: Tensor,
        has_text: Tensor,
    ) -> TextFrameOutput:
        """Loss of one batch of N captions with B = N * G latents, G a caption, one after the other.

        Args:
            prediction: [B, *latent] network output, which gets a gradient.
            noisy_latents: [B, *latent].
            timesteps: [B].
            features: [N, E] of the captions.
            groups: int64 [N], say the video of each.
            has_text: bool [N]; False where the network was not told the caption.
        """
        count = len(prediction) // len(features)
        rows = torch.arange(len(features), device=prediction.device)
        marks = joint_groups(groups, features)
        c_skip, c_out = self.schedule.coefficients(timesteps)
        out = contrastive_diffusion_loss(
            prediction,
            noisy_latents,
            torch.zeros_like(prediction).detach(),  # the diffusion loss is somebody else's: its weights are 0
            c_skip,
            c_out,
            [self.text_frames(features)],
            [torch.where(has_text, rows, -1).repeat_interleave(count)],
            temperature=self.temperature,
            bank_weights=[self.weight],
            mse_weights=torch.zeros_like(c_skip),
            contrastive_weights=self.schedule.signal(timesteps),
            query_groups=marks.repeat_interleave(count),
            bank_groups=[marks],
            normalize=True,
        )
        return TextFrameOutput(out.loss, out.contrastive[0])

    def extra_repr(self) -> str:
        """The settings, for print(module)."""
        return f"latent_shape={self.latent_shape}, weight={self.weight}, temperature={self.temperature}"


def joint_groups(groups: Tensor, features: Tensor) -> Tensor:
    """int64 [N]: rows get one number that have one group, or equal features, or are linked by others that have.

    Args:
        groups: int64 [N].
        features: [N, E].
    """
    linked = (groups[:, None] == groups[None]) | (features[:, None] == features[None]).all(2)  # [N, N]
    for _ in range(max(len(groups) - 1, 1).bit_length()):  # paths of 2, 4, 8, ... links
        linked = (linked.float() @ linked.float()) > 0
    return linked.int().argmax(1)  # the first row that a row is linked to
