"""A sampler as numbers: the schedulers whose step is linear in the model's input and its prediction.

DDIM without noise, Euler and flow-matching Euler are one update. On a path x = alpha x0 + sigma e,

    x' = (sigma'/sigma) x + (alpha' - (sigma'/sigma) alpha) x0,    x0 = c_skip x + c_out F

with alpha, sigma = sqrt(abar), sqrt(1 - abar) for DDIM and 1 - s, s for flow matching. Euler keeps x0 + s e, but the
model sees it divided by sqrt(1 + s^2), which is DDIM's path with abar = 1 / (1 + s^2): in the model's input the
division is part of the two numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.diffusion import PREDICTION_TYPES, flow_coefficients, variance_preserving_coefficients


@dataclass(frozen=True, kw_only=True)
class LinearSteps:
    """The first input of the model is noise_scale * noise; step i maps it to sample_scale * x + prediction_scale * F.

    What the last step returns is the sample itself.
    """

    noise_scale: float
    timesteps: Tensor
    """[steps] on the CPU, as the scheduler passes them to the model."""
    scales: tuple[tuple[float, float], ...]
    """(sample_scale, prediction_scale) of each step, float32 numbers."""


def linear_steps(
    scheduler: Any,
    steps: int,
    scale: Callable[[Tensor], Tensor] = torch.ones_like,
    *,
    set_timesteps: Callable[[Any, int], object] = lambda scheduler, steps: scheduler.set_timesteps(steps),
) -> LinearSteps | None:
    """The steps of a diffusers scheduler, from its own tables in float64; None if it has no such form.

    It is there for DDIMScheduler (neither clipping nor thresholding; eta = 0), EulerDiscreteScheduler and
    FlowMatchEulerDiscreteScheduler (neither stochastic nor inverted), with diffusers' own `step`: a subclass may
    have another. The scheduler isn't changed.

    Args:
        set_timesteps: lets a scheduler take so many steps, in place.
        scale: from timesteps t / T [steps] to what F is multiplied by; it costs nothing, as it is part of the numbers.

    Sources: Song et al., DDIM (arXiv 2010.02502), equation 12; Karras et al. (arXiv 2206.00364), section 4 and
    algorithm 1 with no churn.
    """
    path = {
        "DDIMScheduler": _ddim,
        "EulerDiscreteScheduler": _euler,
        "FlowMatchEulerDiscreteScheduler": _flow,
    }.get(type(scheduler).__name__)
    if path is None or not type(scheduler).__module__.startswith("diffusers."):
        return None
    scheduler = copy.deepcopy(scheduler)
    set_timesteps(scheduler, steps)
    timesteps = scheduler.timesteps
    # Euler looks the first timestep up by its value, and skips a step when the value is there twice
    if len(timesteps.unique()) != len(timesteps):
        return None
    scales = path(scheduler)
    if scales is None or not all(bool(scale.isfinite().all()) for scale in scales):
        return None
    noise_scale, sample_scale, prediction_scale = scales
    prediction_scale = prediction_scale * scale(timesteps.double() / scheduler.config.num_train_timesteps)
    return LinearSteps(
        noise_scale=float(noise_scale),
        timesteps=timesteps,
        scales=tuple(_round(sample_scale.tolist(), prediction_scale.tolist())),
    )


def _ddim(scheduler: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    config = scheduler.config
    if config.prediction_type not in PREDICTION_TYPES[:3] or config.get("clip_sample") or config.get("thresholding"):
        return None
    table, final = scheduler.alphas_cumprod.double(), scheduler.final_alpha_cumprod.double()
    now = scheduler.timesteps
    then = now - config.num_train_timesteps // scheduler.num_inference_steps
    abar = table[now]
    next_abar = torch.where(then >= 0, table[then.clamp(min=0)], final)
    x0 = variance_preserving_coefficients(config.prediction_type, abar)
    path = (abar.sqrt(), (1 - abar).sqrt(), next_abar.sqrt(), (1 - next_abar).sqrt())
    return torch.tensor(float(scheduler.init_noise_sigma)), *_update(*path, *x0)


def _euler(scheduler: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    prediction_type = scheduler.config.prediction_type.replace("original_sample", "sample")
    if prediction_type not in PREDICTION_TYPES[:3]:
        return None
    sigmas = scheduler.sigmas.double()[: len(scheduler.timesteps) + 1]
    to_input = (1 + sigmas**2).rsqrt()  # what scale_model_input multiplies by
    alpha, sigma = to_input, sigmas * to_input
    x0 = variance_preserving_coefficients(prediction_type, alpha[:-1] ** 2)
    sample_scale, prediction_scale = _update(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], *x0)
    for scale in (sample_scale, prediction_scale):
        scale[-1] /= to_input[-1]  # the last result is no input
    return scheduler.init_noise_sigma * to_input[0], sample_scale, prediction_scale


def _flow(scheduler: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    if scheduler.config.get("stochastic_sampling") or scheduler.config.get("invert_sigmas"):
        return None
    sigmas = scheduler.sigmas.double()
    now, then = sigmas[:-1], sigmas[1:]
    return torch.tensor(1.0), *_update(1 - now, now, 1 - then, then, *flow_coefficients(now))


def _round(sample_scales: list[float], prediction_scales: list[float]) -> Iterator[tuple[float, float]]:
    """The scales in float32, which the op computes in, so that their rounding doesn't pile up.

    `ratio` is what the rounding of the steps so far makes of x; the next step takes it back.
    """
    ratio = 1.0
    for sample_scale, prediction_scale in zip(sample_scales, prediction_scales, strict=True):
        rounded = _float32(sample_scale / ratio)
        ratio = ratio * rounded / sample_scale if sample_scale else 1.0
        yield rounded, _float32(prediction_scale * ratio)


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def _update(
    alpha: Tensor, sigma: Tensor, next_alpha: Tensor, next_sigma: Tensor, c_skip: Tensor, c_out: Tensor
) -> tuple[Tensor, Tensor]:
    """(sample_scale, prediction_scale), each [steps]: the equation at the head of this file."""
    keep = next_sigma / sigma
    clean = next_alpha - keep * alpha
    return keep + clean * c_skip, clean * c_out
