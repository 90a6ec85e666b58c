"""Still frames and prompts become video latents, window after window: what a window generates the next one is given."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.ops.guided_step import guidance_branches, guided_step
from contrastive_i2v.randomness import frame_generator
from contrastive_i2v.sampling.guidance import branch_conditions, guided_prediction
from contrastive_i2v.sampling.linear_steps import LinearSteps, linear_steps
from contrastive_i2v.system import Condition, Sampler, System, Text


@torch.no_grad()
def rollout(
    system: System,
    first: Tensor,
    text: Text,
    *,
    frames: int,
    seeds: Sequence[int],
    sampler: Sampler | None = None,
    scheduler: Any = None,
    fps: float | None = None,
    callback: Callable[[int, Tensor], object] | None = None,
) -> Tensor:
    """Generate `frames - 1` latent frames after the first, window after window; never through pixels.

    The noise of a window depends on the sample's seed and the window's first frame alone, and is drawn on the CPU. So a
    prompt gives the same video alone and within a batch (to rounding), and a longer rollout begins with a shorter one's
    frames.

    DDIM, Euler and flow-matching Euler (`linear_steps` says which) run guidance and update as one op, and never wait
    for the device; any other scheduler's `step` is called as it is.

    Args:
        system: the model.
        first: [B, C, h, w], the still frames, the autoencoder's own latents: `codec.sample(codec.encode(pixels))`. They
            stand in for the frames before a video's first, which the system is told.
        text: [B, *] each, from `system.encode_text`.
        frames: length of the video in latent frames, the first one included.
        seeds: B integers.
        sampler: steps and guidance; None = the system's own.
        scheduler: a diffusers scheduler in place of the system's own; copied anew for each window, so the caller's
            keeps its state. Those that draw noise are given one generator a sample (DPMSolverSDE takes none, and isn't
            reproducible).
        fps: frames a second; None = what the system was trained at.
        callback: called with (index of the last finished frame, the window's latents [B, g, C, h, w]) after each
            window; g = G, or fewer where the video ends inside the window.

    Returns:
        [B, frames, C, h, w] float32 latents, normalised; frame 0 is the first.

    Raises:
        InputError: a count that isn't positive, texts or seeds that aren't B, a system whose windows don't follow each
            other, or a scheduler that needs more than a number of steps.
    """
    sampler = sampler or system.sampler
    scheduler = system.scheduler if scheduler is None else scheduler
    _check(system, first, text, frames, scheduler, sampler, seeds)
    linear = linear_steps(scheduler, sampler.steps)
    scales: Any = {"guidance_scale": sampler.guidance_scale, "image_guidance_scale": sampler.image_guidance_scale}
    branches = guidance_branches(**scales)
    codec, window = system.codec, system.window
    rates = None if fps is None else torch.full((len(first),), fps, device=first.device)
    own = [first.float()]  # the video so far, the autoencoder's own latents
    video = [codec.normalize(own[0])]
    while len(video) < frames:
        start = len(video)
        past = [own[max(place, 0)] for place in range(start - window.past, start)]
        given = torch.stack([own[0]] * window.anchor + past, dim=1)  # [B, n, C, h, w]
        present = torch.arange(start - given.shape[1], start, device=first.device) >= 0
        present[: window.anchor] = True
        condition = system.condition(given, text, present=present.expand(len(first), -1), fps=rates)
        conditions = branch_conditions(system, condition, branches)
        generators = [frame_generator(seed, start) for seed in seeds]
        shape = (len(first), len(window.generated), *first.shape[1:])
        noise = system.noise(shape, generators, given=given, sampling=True).to(first.device)
        if linear is not None:
            latents = sample_window(system.network, noise, conditions, branches, scales, linear)
        else:
            own_steps = copy.deepcopy(scheduler)
            own_steps.set_timesteps(sampler.steps, device=first.device)
            latents = sample_window_by_scheduler(
                system.network, noise, conditions, branches, scales, own_steps, generators
            )
        latents = latents[:, : frames - start]  # [B, G, C, h, w]
        for latent in latents.unbind(dim=1):
            video.append(latent)
            own.append(codec.denormalize(latent))
        if callback is not None:
            callback(len(video) - 1, latents)
    return torch.stack(video, dim=1)


def sample_window(
    network: nn.Module, noise: Tensor, conditions: Condition, branches: Sequence[str], scales: Any, linear: LinearSteps
) -> Tensor:
    """One window [B, G, C, h, w]: each step is a call of the network and one of `guided_step`; in float32."""
    timesteps = linear.timesteps.to(noise.device)
    noisy = torch.cat([noise * linear.noise_scale] * len(branches))  # [branches * B, G, C, h, w]
    for step, (timestep, update) in enumerate(zip(timesteps, linear.scales, strict=True), start=1):
        predictions = network(noisy, timestep.expand(len(noisy)), **conditions)
        copies = 1 if step == len(timesteps) else len(branches)
        noisy = guided_step(noisy[: len(noise)], predictions, *update, copies=copies, **scales)
    return noisy


def sample_window_by_scheduler(
    network: nn.Module,
    noise: Tensor,
    conditions: Condition,
    branches: Sequence[str],
    scales: Any,
    scheduler: Any,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """One window [B, G, C, h, w] by the scheduler's own steps over the guided prediction; in float32."""
    # flow matching schedulers neither scale the noise nor the model's input
    scale_input = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    stochastic = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": list(generators)} if stochastic else {}
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        noisy, timesteps = scale_input(latents, timestep), timestep.expand(len(latents))
        prediction = guided_prediction(network, noisy, timesteps, conditions, branches, **scales)
        latents = scheduler.step(prediction.float(), timestep, latents, **extra, return_dict=False)[0]
    return latents


def _check(
    system: System,
    first: Tensor,
    text: Text,
    frames: int,
    scheduler: Any,
    sampler: Sampler,
    seeds: Sequence[int],
) -> None:
    size = len(first)
    if not system.window.rolls:
        raise InputError(
            f"the windows of {system.config.kind} give frames {system.window.given} of {system.window.length}, so none "
            "can follow another; expected a system whose given frames come first"
        )
    if first.ndim != 4:
        raise InputError(f"first has shape {tuple(first.shape)}; expected [B, C, h, w]")
    if frames < 1:
        raise InputError(f"frames={frames}; expected at least 1, the first frame included")
    train_steps = int(scheduler.config.num_train_timesteps)
    if not 1 <= sampler.steps <= train_steps:
        raise InputError(f"steps={sampler.steps}; expected between 1 and {train_steps}, the scheduler's timesteps")
    if len(seeds) != size:
        raise InputError(f"seeds has {len(seeds)} entries; expected one for each of the {size} latents")
    for name, value in text.items():
        if len(value) != size:
            raise InputError(f"{name} has shape {tuple(value.shape)}; expected [{size}, *], one for each latent")
    if scheduler.config.get("use_dynamic_shifting"):
        raise InputError(
            "the scheduler's use_dynamic_shifting is True, and a rollout has no mu to give it; expected "
            "False: use type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False, shift=...)"
        )
