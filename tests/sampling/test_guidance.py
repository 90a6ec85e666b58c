"""Three-way guidance: its formula, its order, and the forward passes it saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import Toy

from contrastive_i2v.ops.guided_step import guidance_branches
from contrastive_i2v.sampling import branch_conditions, guided_prediction, three_way_guidance
from contrastive_i2v.system import Condition, dropped


class Denoiser(nn.Module):
    """Linear in the image, quadratic in the prompt; counts the samples it was run on."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0
        self.calls = 0

    def forward(self, noisy: Tensor, timesteps: Tensor, image_latents: Tensor, prompt_embeds: Tensor) -> Tensor:
        self.samples += len(noisy)
        self.calls += 1
        prompt = prompt_embeds.square().mean((1, 2))[:, None, None, None]
        return noisy * timesteps[:, None, None, None] + 2 * image_latents + prompt


class Dropping(Toy):
    """Says what a dropped image and prompt are."""

    def __init__(self, null_prompt_embeds: Tensor) -> None:
        super().__init__()
        self.null_prompt_embeds = null_prompt_embeds

    def drop(self, condition: Condition, *, image: Tensor, text: Tensor, **_: Any) -> Condition:
        return {
            "image_latents": dropped(condition["image_latents"], image),
            "prompt_embeds": dropped(condition["prompt_embeds"], text, self.null_prompt_embeds),
        }


def test_formula() -> None:
    uncond, image, full = torch.randn(3, 2, 4, 3, 3)
    expected = -0.5 * uncond - 6 * image + 7.5 * full
    torch.testing.assert_close(three_way_guidance(uncond, image, full, 7.5, 1.5), expected)
    torch.testing.assert_close(three_way_guidance(uncond, image, full, 1.0, 1.0), full)
    torch.testing.assert_close(three_way_guidance(uncond, image, full, 0.0, 0.0), uncond)


@pytest.mark.parametrize(
    ("guidance_scale", "image_guidance_scale", "branches"),
    [(7.5, 1.5, 3), (1.0, 1.0, 1), (7.5, 1.0, 2), (2.0, 2.0, 2), (0.0, 1.5, 2), (0.0, 1.0, 1), (0.0, 0.0, 1)],
)
def test_only_the_branches_that_count_are_run(
    guidance_scale: float, image_guidance_scale: float, branches: int
) -> None:
    torch.manual_seed(0)
    noisy, image_latents = torch.randn(2, 2, 4, 3, 3)
    timesteps = torch.tensor([1.0, 2.0])
    prompt_embeds, null_prompt_embeds = torch.randn(2, 5, 6), torch.randn(1, 5, 6)
    denoiser = Denoiser()
    run = guidance_branches(guidance_scale, image_guidance_scale)
    condition = {"image_latents": image_latents, "prompt_embeds": prompt_embeds}
    actual = guided_prediction(
        denoiser,
        noisy,
        timesteps,
        branch_conditions(Dropping(null_prompt_embeds), condition, run),
        run,
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
    )
    assert (denoiser.calls, denoiser.samples) == (1, 2 * branches)

    null_prompts = null_prompt_embeds.repeat(2, 1, 1)
    expected = three_way_guidance(
        denoiser(noisy, timesteps, torch.zeros_like(image_latents), null_prompts),
        denoiser(noisy, timesteps, image_latents, null_prompts),
        denoiser(noisy, timesteps, image_latents, prompt_embeds),
        guidance_scale,
        image_guidance_scale,
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
