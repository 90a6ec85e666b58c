"""A small system for tests: any window, a codec of block means that may compress time, and a linear network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_i2v.randomness import draw
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, System, SystemConfig, Text, Window, dropped

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


class BlockMeans:
    """A codec: the means of 8x8 blocks, and those negated. A latent frame is the mean of the frames up to its own where
    time is compressed. Counts the frames that it encodes."""

    channels, downscale, scale = 3, 8, 0.5

    def __init__(self, temporal_downscale: int = 1, dtype: torch.dtype = torch.float32) -> None:
        self.temporal_downscale, self.dtype = temporal_downscale, dtype
        self.frames = 0

    def encode(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.float32 and pixels.abs().max() <= 1
        self.frames += pixels.shape[0] * pixels.shape[1]
        means = F.avg_pool2d(pixels.flatten(0, 1), 8).to(self.dtype).unflatten(0, pixels.shape[:2])
        if self.temporal_downscale > 1:
            ends = range(1, pixels.shape[1] + 1, self.temporal_downscale)
            means = torch.stack([means[:, :end].mean(1) for end in ends], dim=1)
        return torch.cat([means, -means], dim=2)

    def sample(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        mean = raw.chunk(2, dim=-3)[0]
        return mean if noise is None else mean + noise

    def normalize(self, own: Tensor) -> Tensor:
        return own * self.scale

    def denormalize(self, latents: Tensor) -> Tensor:
        return latents / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        extra = self.temporal_downscale - 1  # the first latent frame is one frame
        frames = self.denormalize(latents).repeat_interleave(extra + 1, 1)[:, extra:]
        return frames.repeat_interleave(8, -1).repeat_interleave(8, -2).clamp(-1, 1)


class Linear(nn.Module):
    """Every generated frame is a mixture of all noisy and given ones, plus what the text says."""

    def __init__(self, generated: int, given: int) -> None:
        super().__init__()
        weight = torch.randn(generated, generated + given, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(0.3 * weight)

    def forward(self, noisy: Tensor, timesteps: Tensor, given: Tensor, prompt_embeds: Tensor) -> Tensor:
        frames = torch.cat([noisy, given], dim=1)
        mixed = torch.einsum("gf, bfchw -> bgchw", self.weight, frames)
        return mixed + (prompt_embeds.mean((1, 2)) + timesteps / 1000).view(-1, 1, 1, 1, 1)


class Toy(System):
    """Notes what it is asked: the prompts, and of every condition what was given, present, and the rate."""

    fingerprint = "toy"

    def __init__(self, window: Window = Window(2), codec: BlockMeans | None = None) -> None:  # noqa: B008
        self.config, self.window, self.codec = SystemConfig(kind="toy"), window, codec or BlockMeans()
        self.network = Linear(len(window.generated), window.anchor + len(window.given) + window.ahead)
        self.scheduler = DDIMScheduler(**NOISE, clip_sample=False)
        self.sampler, self.size = Sampler(steps=3, guidance_scale=2.0, image_guidance_scale=1.5), (16, 16)
        self.prompts: list[str] = []
        self.told: list[dict[str, Any]] = []

    @classmethod
    def opens(cls, folder: Path) -> bool:
        return False

    @classmethod
    def load(cls, source: str, config: SystemConfig, saved: SystemConfig | None) -> Toy:
        return cls()

    def save_weights(self, folder: Path) -> None:
        raise NotImplementedError

    def parts(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def encode_text(self, prompts: Sequence[str]) -> Text:
        self.prompts += prompts
        values = torch.tensor([[len(p), sum(map(ord, p)) / 1000] for p in prompts], dtype=self.codec.dtype)
        lengths = torch.tensor([len(p) for p in prompts])
        mask = torch.arange(3) < lengths[:, None]
        return {"prompt_embeds": values[:, None].repeat(1, 3, 1), "mask": mask, "length": lengths}

    def condition(self, given: Tensor, text: Text, **more: Any) -> Condition:
        self.told.append({"given": given, **more})
        return {"given": given, "prompt_embeds": text["prompt_embeds"] / 100}

    def drop(self, condition: Condition, *, image: Tensor, text: Tensor, **_: Any) -> Condition:
        dropping = {"given": image, "prompt_embeds": text}
        return {name: dropped(value, dropping[name]) for name, value in condition.items()}

    def noise(
        self, shape: Sequence[int], generator: Any, *, given: Tensor, sampling: bool, layout: Tensor | None = None
    ) -> Tensor:
        """Half of its variance is shared by a window's frames."""
        shared = draw((shape[0], 1, *shape[2:]), generator)
        return (shared + draw(shape, generator)) / 2**0.5
