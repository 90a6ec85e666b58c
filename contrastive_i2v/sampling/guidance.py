"""Classifier-free guidance towards the given frames and towards the text, in one batched forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_i2v.ops.guided_step import guidance_branches
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, System, Text


def three_way_guidance(
    pred_uncond: Tensor,
    pred_image: Tensor,
    pred_full: Tensor,
    guidance_scale: float,
    image_guidance_scale: float,
    pred_history: Tensor | None = None,
) -> Tensor:
    """e(0,0) + s_I * (e(I,0) - e(0,0)) + s_T * (e(I,T) - e(I,0)); with fractional history guidance

        e(0,0) + s_I * (e(I_k,0) - e(0,0)) + (e(I,0) - e(I_k,0)) + s_T * (e(I,T) - e(I,0))

    Args:
        pred_uncond: e(0,0), [B, *latent], neither image nor text.
        pred_image: e(I,0), the image alone.
        pred_full: e(I,T), image and text.
        guidance_scale: s_T, towards the text.
        image_guidance_scale: s_I, towards the image.
        pred_history: e(I_k,0), the image noised to a level.

    Sources: Brooks et al., InstructPix2Pix (arXiv 2211.09800), equation 3; Song et al., History-Guided Video Diffusion
    (arXiv 2502.06764), section 5: with s_T = 1 and no text it is their HG-f, and HG-v without pred_history.
    """
    if pred_history is not None:
        pred_uncond = pred_uncond + image_guidance_scale * (pred_history - pred_uncond)
        return pred_uncond + (pred_image - pred_history) + guidance_scale * (pred_full - pred_image)
    return pred_uncond + image_guidance_scale * (pred_image - pred_uncond) + guidance_scale * (pred_full - pred_image)


def guided_prediction(
    network: nn.Module,
    noisy: Tensor,
    timesteps: Tensor,
    conditions: Condition,
    branches: Sequence[str],
    *,
    guidance_scale: float,
    image_guidance_scale: float,
) -> Tensor:
    """The guided prediction [B, *latent], from one call of the network on the branches that have a say.

    A branch whose factor vanishes isn't run: e(0,0) where s_I = 1, e(I,0) where s_I = s_T, e(I,T) where s_T =
    0. So s_T = s_I = 1 costs one forward pass a sample, not three.

    Args:
        noisy: [B, *latent]; timesteps: [B].
        conditions: of all branches, from `branch_conditions`.
        branches: from `ops.guided_step.guidance_branches`.
    """
    count = len(branches)
    predictions = network(torch.cat([noisy] * count), torch.cat([timesteps] * count), **conditions).chunk(count)
    by_branch = dict(zip(branches, predictions, strict=True))
    # a branch that wasn't run cancels out below, so anything may stand in for it
    uncond, image, full = (by_branch.get(name, predictions[0]) for name in ("uncond", "image", "full"))
    history = by_branch.get("history")
    return three_way_guidance(uncond, image, full, guidance_scale, image_guidance_scale, history)


@dataclass(frozen=True)
class Guidance:
    """What the network is called with at a step, and what of its predictions makes the guided one."""

    guidance_scale: float
    image_guidance_scale: float
    branches: tuple[str, ...]
    conditions: Condition
    """`[branches * B, *]`."""

    @property
    def scales(self) -> dict[str, Any]:
        """The arguments of that name."""
        return {"guidance_scale": self.guidance_scale, "image_guidance_scale": self.image_guidance_scale}


def guidance_by_step(
    system: System, condition: Condition, sampler: Sampler, shares: Tensor, negative: Text | None = None
) -> list[Guidance]:
    """The guidance of each step, at timesteps `t / T [steps]`: the sampler's in its interval, none elsewhere.

    `negative` holds the negative prompts `[B, *]`; None = "".
    """
    level, history = sampler.history_level, condition
    if level:
        history = system.noise_history(condition, system.schedule.timesteps_at(torch.tensor(level)).item())

    def guidance(text_scale: float, image_scale: float) -> Guidance:
        branches = guidance_branches(text_scale, image_scale, level > 0)
        return Guidance(
            text_scale, image_scale, branches, branch_conditions(system, condition, branches, history, negative)
        )

    guided = sampler.guided(shares)
    inside = guidance(sampler.guidance_scale, sampler.image_guidance_scale) if any(guided) else None
    outside = guidance(1.0, 1.0) if not all(guided) else None
    return [one for one in (inside if acts else outside for acts in guided) if one is not None]


def branch_conditions(
    system: System,
    condition: Condition,
    branches: tuple[str, ...],
    history: Condition | None = None,
    negative: Text | None = None,
) -> Condition:
    """The condition `[branches * B, *]` that the branches are run with: "full", "image" (no text), "history" (its
    given frames noised, no text) or "uncond"; `negative [B, *]` stands where there is no text."""
    if tuple(branches) == ("full",):
        return condition
    some = next(iter(condition.values()))
    size, count = len(some), len(branches)
    image = torch.zeros(size * count, dtype=torch.bool, device=some.device)
    text = torch.ones_like(image)
    text[: size * branches.count("full")] = False  # the branch with everything is the first,
    image[size * (count - branches.count("uncond")) :] = True  # the one with nothing the last
    each = [history if branch == "history" and history is not None else condition for branch in branches]
    repeated = {name: torch.cat([one[name] for one in each]) for name in condition}
    without = negative and {name: torch.cat([value] * count) for name, value in negative.items()}
    return system.drop(repeated, image=image, text=text, negative=without)
