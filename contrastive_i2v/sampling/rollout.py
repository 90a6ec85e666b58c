"""A still latent and prompts become video latents: each generated latent is the next one's condition."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.errors import InputError
from contrastive_i2v.ops.guided_step import guidance_branches, guided_step
from contrastive_i2v.sampling.guidance import Denoiser, branch_conditions, guided_prediction
from contrastive_i2v.sampling.linear_steps import LinearSteps, linear_steps


@torch.no_grad()
def rollout(
    denoiser: Denoiser,
    first_latent: Tensor,
    prompt_embeds: Tensor,
    null_prompt_embeds: Tensor,
    *,
    frames: int,
    scheduler: Any,
    steps: int = 50,
    guidance_scale: float = 7.5,
    image_guidance_scale: float = 1.5,
    scaling_factor: float,
    seeds: Sequence[int],
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Generate `frames - 1` latents after the first, each from the one before it; never through pixels.

        condition_1 = first_latent
        z_f = sample(denoiser(., condition_f, prompt)),  condition_{f+1} = z_f / scaling_factor

    The noise of a sample depends on its seed and the frame alone, and is drawn on the CPU. So a prompt gives
    the same video alone and within a batch (to rounding), and a longer rollout begins with a shorter one's
    frames.

    DDIM, Euler and flow-matching Euler (`linear_steps` says which) run guidance and update as one op, and never wait
    for the device; any other scheduler's `step` is called as it is.

    Args:
        denoiser: (noisy, timesteps, image_latents, prompt_embeds) -> prediction; `InstructPix2Pix.denoiser`.
        first_latent: [B, C, h, w], the VAE's posterior mode, unscaled.
        prompt_embeds: [B, L, E].
        null_prompt_embeds: [1, L, E], the embedding of "".
        frames: length of the video, the first latent included.
        scheduler: a diffusers scheduler; copied anew for each frame, so the caller's keeps its state. Those
            that draw noise are given one generator a sample (DPMSolverSDE takes none, and isn't
            reproducible).
        steps: denoising steps a frame.
        guidance_scale: s_T, towards the text; 1 turns it off.
        image_guidance_scale: s_I, towards the image; 1 turns it off. With both off a step costs one forward
            pass a sample instead of three.
        scaling_factor: of the VAE; diffusion latents are VAE latents times this.
        seeds: B integers.
        callback: called with (frame, its scaled latents [B, C, h, w]) after each generated frame.

    Returns:
        [B, frames, C, h, w] float32 *scaled* latents; frame 0 is first_latent * scaling_factor.

    Raises:
        InputError: a count that isn't positive, a number of prompts or seeds that isn't B, or a scheduler
            that needs more than a number of steps.
    """
    _check(first_latent, prompt_embeds, null_prompt_embeds, frames, scheduler, steps, scaling_factor, seeds)
    linear = linear_steps(scheduler, steps)
    sample: Callable[..., Tensor] = (
        partial(sample_frame, linear=linear)
        if linear is not None
        else partial(sample_frame_by_scheduler, scheduler=scheduler, steps=steps)
    )
    condition = first_latent.float()
    video = [condition * scaling_factor]
    for frame in range(1, frames):
        latents = sample(
            denoiser,
            condition,
            prompt_embeds,
            null_prompt_embeds,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            generators=[frame_generator(seed, frame) for seed in seeds],
        )
        if callback is not None:
            callback(frame, latents)
        video.append(latents)
        condition = latents / scaling_factor
    return torch.stack(video, dim=1)


def sample_frame(
    denoiser: Denoiser,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    null_prompt_embeds: Tensor,
    *,
    linear: LinearSteps,
    guidance_scale: float,
    image_guidance_scale: float,
    generators: list[torch.Generator],
) -> Tensor:
    """One frame [B, C, h, w], scaled: each step is a call of the denoiser and one of `guided_step`; in float32."""
    branches = guidance_branches(guidance_scale, image_guidance_scale)
    conditions = branch_conditions(branches, image_latents, prompt_embeds, null_prompt_embeds)
    timesteps = linear.timesteps.to(image_latents.device)

    noise = _draw(generators, image_latents.shape[1:]).to(image_latents.device)
    noisy = torch.cat([noise * linear.noise_scale] * len(branches))  # [branches * B, C, h, w]
    for step, (timestep, update) in enumerate(zip(timesteps, linear.scales, strict=True), start=1):
        predictions = denoiser(noisy, timestep.expand(len(noisy)), *conditions)
        copies = 1 if step == len(timesteps) else len(branches)
        noisy = guided_step(
            noisy[: len(noise)],
            predictions,
            *update,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            copies=copies,
        )
    return noisy


def sample_frame_by_scheduler(
    denoiser: Denoiser,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    null_prompt_embeds: Tensor,
    *,
    scheduler: Any,
    steps: int,
    guidance_scale: float,
    image_guidance_scale: float,
    generators: list[torch.Generator],
) -> Tensor:
    """One frame [B, C, h, w], scaled, by the scheduler's own steps over the guided prediction; in float32."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device=image_latents.device)
    # flow matching schedulers neither scale the noise nor the model's input
    scale_input = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    stochastic = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if stochastic else {}

    noise = _draw(generators, image_latents.shape[1:]).to(image_latents.device)
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        prediction = guided_prediction(
            denoiser,
            scale_input(latents, timestep),
            timestep.expand(len(latents)),
            image_latents,
            prompt_embeds,
            null_prompt_embeds,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
        )
        latents = scheduler.step(prediction.float(), timestep, latents, **extra, return_dict=False)[0]
    return latents


def frame_generator(seed: int, frame: int) -> torch.Generator:
    """The CPU generator of one frame of one sample: unrelated for any other pair of seed and frame."""
    digest = hashlib.blake2b(f"{int(seed)}/{int(frame)}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def frame_noise(seed: int, frame: int, shape: Sequence[int]) -> Tensor:
    """The noise [*shape] (float32, CPU) that `rollout` starts this frame of this sample from."""
    return _draw([frame_generator(seed, frame)], shape)[0]


def _draw(generators: list[torch.Generator], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


def _check(
    first_latent: Tensor,
    prompt_embeds: Tensor,
    null_prompt_embeds: Tensor,
    frames: int,
    scheduler: Any,
    steps: int,
    scaling_factor: float,
    seeds: Sequence[int],
) -> None:
    size = len(first_latent)
    if first_latent.ndim != 4:
        raise InputError(f"first_latent has shape {tuple(first_latent.shape)}; expected [B, C, h, w]")
    if frames < 1:
        raise InputError(f"frames={frames}; expected at least 1, the first frame included")
    train_steps = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= train_steps:
        raise InputError(f"steps={steps}; expected between 1 and {train_steps}, the scheduler's timesteps")
    if not scaling_factor > 0:
        raise InputError(f"scaling_factor={scaling_factor}; expected a number > 0")
    if len(seeds) != size:
        raise InputError(f"seeds has {len(seeds)} entries; expected one for each of the {size} latents")
    if prompt_embeds.ndim != 3 or len(prompt_embeds) != size:
        raise InputError(
            f"prompt_embeds has shape {tuple(prompt_embeds.shape)}; expected [{size}, L, E], one for each latent"
        )
    null_shape, expected = tuple(null_prompt_embeds.shape), (1, *prompt_embeds.shape[1:])
    if null_shape != expected:
        raise InputError(f"null_prompt_embeds has shape {null_shape}; expected {expected}")
    if scheduler.config.get("use_dynamic_shifting"):
        raise InputError(
            "the scheduler's use_dynamic_shifting is True, and a rollout has no mu to give it; expected "
            "False: use type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False, shift=...)"
        )
