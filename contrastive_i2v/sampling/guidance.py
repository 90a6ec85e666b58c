"""Classifier-free guidance towards the image and towards the text, in one batched forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from contrastive_i2v.ops.guided_step import guidance_branches

# (noisy [B, C, h, w], timesteps [B], image_latents [B, C, h, w], prompt_embeds [B, L, E]) -> [B, C, h, w]; it leaves
# its arguments as they are
Denoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def three_way_guidance(
    pred_uncond: Tensor,
    pred_image: Tensor,
    pred_full: Tensor,
    guidance_scale: float,
    image_guidance_scale: float,
) -> Tensor:
    """e(0,0) + s_I * (e(I,0) - e(0,0)) + s_T * (e(I,T) - e(I,0)).

    Args:
        pred_uncond: e(0,0), [B, C, h, w], neither image nor text.
        pred_image: e(I,0), the image alone.
        pred_full: e(I,T), image and text.
        guidance_scale: s_T, towards the text.
        image_guidance_scale: s_I, towards the image.

    Source: Brooks et al., InstructPix2Pix (arXiv 2211.09800), equation 3.
    """
    return pred_uncond + image_guidance_scale * (pred_image - pred_uncond) + guidance_scale * (pred_full - pred_image)


def guided_prediction(
    denoiser: Denoiser,
    noisy: Tensor,
    timesteps: Tensor,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    null_prompt_embeds: Tensor,
    *,
    guidance_scale: float,
    image_guidance_scale: float,
) -> Tensor:
    """The guided prediction [B, C, h, w], from one call of the denoiser on up to 3B samples.

    A branch whose factor vanishes isn't run: e(0,0) where s_I = 1, e(I,0) where s_I = s_T, e(I,T) where s_T =
    0. So s_T = s_I = 1 costs one forward pass a sample, not three.

    Args:
        noisy: [B, C, h, w]; timesteps: [B]; image_latents: [B, C, h, w] unscaled; prompt_embeds: [B, L, E].
        null_prompt_embeds: [1, L, E], the embedding of "".
    """
    branches = guidance_branches(guidance_scale, image_guidance_scale)
    predictions = denoiser(
        torch.cat([noisy] * len(branches)),
        torch.cat([timesteps] * len(branches)),
        *branch_conditions(branches, image_latents, prompt_embeds, null_prompt_embeds),
    ).chunk(len(branches))
    by_branch = dict(zip(branches, predictions, strict=True))
    # a branch that wasn't run cancels out below, so anything may stand in for it
    uncond, image, full = (by_branch.get(name, predictions[0]) for name in ("uncond", "image", "full"))
    return three_way_guidance(uncond, image, full, guidance_scale, image_guidance_scale)


def branch_conditions(
    branches: tuple[str, ...], image_latents: Tensor, prompt_embeds: Tensor, null_prompt_embeds: Tensor
) -> tuple[Tensor, Tensor]:
    """(image_latents [branches * B, C, h, w], prompt_embeds [branches * B, L, E]) that the branches are run with."""
    null_image = torch.zeros_like(image_latents)
    null_prompt = null_prompt_embeds.expand_as(prompt_embeds)
    return (
        torch.cat([null_image if branch == "uncond" else image_latents for branch in branches]),
        torch.cat([prompt_embeds if branch == "full" else null_prompt for branch in branches]),
    )
