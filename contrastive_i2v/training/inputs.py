"""From cached latent pairs to what the denoiser and the loss take: order, noise, timesteps, dropped conditions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_i2v.data.latents import LatentPair
from contrastive_i2v.diffusion import NoiseSchedule


@dataclass(frozen=True)
class Inputs:
    """One batch; all latents are scaled but `image_latents`."""

    noisy_latents: Tensor  # [B, C, h, w]
    timesteps: Tensor  # [B]
    clean_latents: Tensor  # [B, C, h, w]
    noise: Tensor  # [B, C, h, w]
    image_latents: Tensor  # [B, C, h, w], the posterior mode, unscaled; zero where dropped
    prompt_embeds: Tensor  # [B, L, E]; the null prompt's where dropped
    has_condition: Tensor  # bool [B]
    banks: dict[str, Tensor]  # name -> [B, C, h, w]
    groups: Tensor  # int64 [B]
    drift: Tensor  # [B, C, h, w], what was added to the scaled condition; zero without condition noise


def make_inputs(
    batch: LatentPair,
    *,
    schedule: NoiseSchedule,
    scaling_factor: float,
    null_embeds: Tensor,
    conditioning_dropout: float,
    condition_noise: float = 0.0,
    generator: torch.Generator,
) -> Inputs:
    """Draw a batch's posterior sample, noise, timesteps and dropped conditions from `generator` (on the CPU).

    The target is a posterior sample times the scaling factor, the condition the posterior mode, unscaled, as
    InstructPix2Pix has it. With one uniform r a pair: no prompt if r < 2p, no image if p <= r < 3p. Condition noise s
    adds u s e to the scaled condition, u uniform in [0, 1] a pair and e normal: a rollout's own errors look like it.
    """
    device, p = batch.source_moments.device, conditioning_dropout
    source = batch.source_moments.chunk(2, dim=1)[0]  # [B, C, h, w]
    mean, logvar = batch.target_moments.chunk(2, dim=1)
    posterior_noise, noise = (torch.randn(mean.shape, generator=generator).to(device) for _ in range(2))
    clean = (mean + (0.5 * logvar.clamp(-30, 20)).exp() * posterior_noise) * scaling_factor
    timesteps = schedule.sample_timesteps(len(mean), generator, device)
    r = torch.rand(len(mean), generator=generator).to(device)
    has_prompt, has_condition = r >= 2 * p, (r < p) | (r >= 3 * p)
    condition, drift = source, torch.zeros_like(source)
    if condition_noise > 0:
        amount = condition_noise * torch.rand(len(mean), 1, 1, 1, generator=generator)
        drift = (amount * torch.randn(mean.shape, generator=generator)).to(device)
        condition = source + drift / scaling_factor
    return Inputs(
        noisy_latents=schedule.add_noise(clean, noise, timesteps),
        timesteps=timesteps,
        clean_latents=clean,
        noise=noise,
        image_latents=condition * has_condition[:, None, None, None],
        prompt_embeds=torch.where(has_prompt[:, None, None], batch.prompt_embeds, null_embeds),
        has_condition=has_condition,
        banks={"target": clean, "input": source * scaling_factor},
        groups=batch.group,
        drift=drift,
    )


def batch_indices(size: int, batch_size: int, *, start: int, stop: int, seed: int) -> Iterator[list[int]]:
    """Batches number `start` to `stop` of an endless pass over `size` items, shuffled anew in each epoch.

    Batch n is the same whatever came before, in this process or another.
    """
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    for batch in range(start, stop):
        rows = []
        for position in range(batch * batch_size, (batch + 1) * batch_size):
            if position // size != epoch:
                epoch = position // size
                order = torch.randperm(size, generator=seeded(seed, "epoch", epoch))
            rows.append(int(order[position % size]))
        yield rows


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator that is a function of `parts` alone, unrelated for any others."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
