"""The codec of image latent diffusion: diffusers' AutoencoderKL, every frame for itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError

ONLOAD_DEVICE = "_contrastive_i2v_onload_device"
"""The attribute of a module under group offloading that says where it computes."""
AT_ONCE = 8
"""Frames encoded or decoded together."""


class ImageCodec:
    """A `Codec` over AutoencoderKL: latents are (posterior sample - shift_factor) * scaling_factor."""

    temporal_downscale = 1

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.channels = int(vae.config.latent_channels)
        self.downscale = int(2 ** (len(vae.config.block_out_channels) - 1))
        self.scale: float | Tensor = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """`[B, F, 3, H, W]` in [-1, 1] -> mean and log-variance of the posterior along channels, `[B, F, 2C, h, w]`."""
        if pixels.ndim != 5 or pixels.shape[2] != 3 or any(side % self.downscale for side in pixels.shape[3:]):
            raise InputError(
                f"pixels has shape {tuple(pixels.shape)}; expected [B, F, 3, H, W] with H and W multiples of "
                f"{self.downscale}: resize the images first"
            )
        parts = []
        for part in torch.split(pixels.flatten(0, 1), AT_ONCE):
            posterior = self.vae.encode(like(self.vae, part)).latent_dist
            parts.append(torch.cat([posterior.mean, posterior.logvar], dim=1))  # [f, 2C, h, w]
        moments = torch.cat(parts)
        return moments.reshape(*pixels.shape[:2], *moments.shape[1:])

    def sample(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """mean + exp(logvar / 2) * noise, or the mean: `[..., 2C, h, w]` -> `[..., C, h, w]`."""
        mean, logvar = raw.chunk(2, dim=-3)
        return mean if noise is None else mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise

    def normalize(self, own: Tensor) -> Tensor:
        """(z - shift) * scale."""
        return (own - self.shift if self.shift else own) * self.scale

    def denormalize(self, latents: Tensor) -> Tensor:
        """x / scale + shift."""
        own = latents / self.scale
        return own + self.shift if self.shift else own

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """`[B, F, C, h, w]` -> `[B, F, 3, H, W]`, clamped to [-1, 1]."""
        parts = [
            self.vae.decode(self.denormalize(like(self.vae, part)), return_dict=False)[0]
            for part in torch.split(latents.flatten(0, 1), AT_ONCE)
        ]
        pixels = torch.cat(parts).clamp(-1, 1)
        return pixels.reshape(*latents.shape[:2], *pixels.shape[1:])


def like(module: nn.Module, value: Tensor) -> Tensor:
    """`value` where the module computes, in the dtype of its weights."""
    return value.to(device_of(module), next(module.parameters()).dtype)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: where its weights are, or where a hook that offloads them will put them."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    device = device or getattr(module, ONLOAD_DEVICE, None)
    return next(module.parameters()).device if device is None else torch.device(device)
