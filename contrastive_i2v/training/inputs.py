"""From cached examples to what the network and the loss take: noise, timesteps, dropped conditions, rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from contrastive_i2v.data.examples import Example
from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.randomness import draw
from contrastive_i2v.system import Condition, System, split_noise
from contrastive_i2v.training.config import TimestepsConfig


@dataclass(frozen=True)
class Inputs:
    """One batch; all latents are normalised. G frames of a window are generated."""

    noisy_latents: Tensor  # [B, G, C, h, w]
    timesteps: Tensor  # [B]
    clean_latents: Tensor  # [B, G, C, h, w]
    noise: Tensor  # [B, G, C, h, w]
    condition: Condition
    has_condition: Tensor  # bool [B]
    source_latents: Tensor  # [B, C, h, w], the last given frame, without noise
    groups: Tensor  # int64 [B]


@dataclass(frozen=True)
class LossRows:
    """The loss's view of a batch: a row a generated frame, or a row a clip."""

    noisy_latents: Tensor  # [rows, *latent]
    timesteps: Tensor  # [rows]
    clean_latents: Tensor  # [rows, *latent]
    noise: Tensor  # [rows, *latent]
    has_condition: Tensor  # bool [rows]
    banks: dict[str, Tensor]  # name -> [rows, *latent]
    groups: Tensor  # int64 [rows]


def make_inputs(
    batch: Example,
    system: System,
    *,
    schedule: NoiseSchedule,
    timesteps: TimestepsConfig,
    conditioning_dropout: float,
    condition_noise: float = 0.0,
    generator: torch.Generator,
) -> Inputs:
    """Draw a batch's posterior sample, noise, timesteps and dropped conditions from `generator` (on the CPU).

    The generated frames are posterior samples, the given ones posterior modes, as InstructPix2Pix has it. With one
    uniform r an example: no text if r < 2p, no image if p <= r < 3p. Condition noise s adds u s e to the given
    latents, u uniform in [0, 1] an example and e normal: a rollout's own errors look like it.
    """
    device, p, codec, window = batch.raw.device, conditioning_dropout, system.codec, system.window
    anchors = int(window.anchor)
    given_rows = [*range(anchors), *(anchors + place for place in window.given)]
    given = codec.sample(_pick(batch.raw, given_rows))  # [B, n, C, h, w]
    raw = _pick(batch.raw, [anchors + place for place in window.generated])
    size, shape = len(raw), (*raw.shape[:2], codec.channels, *raw.shape[3:])  # [B, G, C, h, w]
    clean = codec.normalize(codec.sample(raw, _send(draw(shape, generator), device)))
    every_noise = _send(system.noise(shape, generator, given=given, sampling=False), device)
    given_noise, noise = split_noise(every_noise, shape[1])
    drawn = schedule.sample_timesteps(
        size,
        generator,
        distribution=timesteps.distribution,
        mean=timesteps.logit_mean,
        std=timesteps.logit_std,
        shift=timesteps.shift,
    )
    drawn = _send(drawn, device)
    r = _send(torch.rand(size, generator=generator), device)
    no_text, no_image = r < 2 * p, (r >= p) & (r < 3 * p)
    source, level = codec.normalize(given[:, -1] if given_rows else torch.zeros_like(clean[:, 0])), None
    if condition_noise > 0:
        amount = condition_noise * torch.rand(size, 1, 1, 1, 1, generator=generator)
        given = given + _send(amount * draw(given.shape, generator), device) / codec.scale
        level = _send(amount.flatten(), device)
    present = _pick(batch.present, given_rows)
    condition = system.condition(
        given, batch.text, present=present, fps=batch.fps, noise_level=level, noise=given_noise
    )
    return Inputs(
        noisy_latents=schedule.add_noise(clean, noise, drawn),
        timesteps=drawn,
        clean_latents=clean,
        noise=noise,
        condition=system.drop(condition, image=no_image, text=no_text),
        has_condition=~no_image,
        source_latents=source,
        groups=batch.group,
    )


def _pick(frames: Tensor, rows: Sequence[int]) -> Tensor:
    """`frames[:, rows]`; indexing by a list would wait for the device."""
    return torch.stack([frames[:, row] for row in rows], dim=1) if rows else frames[:, :0]


def _send(drawn: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it, which takes pinned memory."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)


def loss_rows(inputs: Inputs, rows: Literal["frame", "clip"]) -> LossRows:
    """The rows of the loss: G a window, or one. The source frame stands beside every generated one."""
    count = inputs.clean_latents.shape[1]  # G

    def of_frames(latents: Tensor) -> Tensor:
        """`[B, G, C, h, w]`"""
        return latents.flatten(0, 1) if rows == "frame" else latents

    def of_windows(values: Tensor) -> Tensor:
        """`[B]`"""
        return values.repeat_interleave(count) if rows == "frame" else values

    clean, source = of_frames(inputs.clean_latents), inputs.source_latents[:, None]
    return LossRows(
        noisy_latents=of_frames(inputs.noisy_latents),
        timesteps=of_windows(inputs.timesteps),
        clean_latents=clean,
        noise=of_frames(inputs.noise),
        has_condition=of_windows(inputs.has_condition),
        banks={"target": clean, "input": of_frames(source.expand(-1, count, -1, -1, -1))},
        groups=of_windows(inputs.groups),
    )
