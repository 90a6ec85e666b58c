"""A complete system in one file: what a new model has to bring, and all that it has to bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contrastive_i2v.models import SYSTEMS
from contrastive_i2v.randomness import draw
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, System, SystemConfig, Text, Window


@dataclass(frozen=True, kw_only=True)
class ToyConfig(SystemConfig):
    kind: Literal["toy"] = "toy"
    width: int = 8  # channels of the network


class ToyCodec:
    channels, downscale, temporal_downscale, scale = 3, 4, 1, 2.0

    def encode(self, pixels: Tensor) -> Tensor:
        return nn.AvgPool2d(4)(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def sample(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        return raw if noise is None else raw + 0.01 * noise

    def normalize(self, own: Tensor) -> Tensor:
        return (own - 0.1) * self.scale

    def denormalize(self, latents: Tensor) -> Tensor:
        return latents / self.scale + 0.1

    def decode(self, latents: Tensor) -> Tensor:
        return self.denormalize(latents).repeat_interleave(4, -1).repeat_interleave(4, -2).clamp(-1, 1)


class ToyNetwork(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(3))
        self.enter, self.leave = nn.Conv3d(3, width, 3, padding=1), nn.Conv3d(width, 3, 3, padding=1)
        self.tell = nn.Linear(3, width)  # mean token, timestep, frames a second

    def forward(self, noisy: Tensor, timesteps: Tensor, **told: Tensor) -> Tensor:
        first = torch.where(told["without"].view(-1, 1, 1, 1), self.null.view(1, 3, 1, 1), told["first"])
        video = torch.cat([first[:, None].to(noisy.dtype), noisy], dim=1).transpose(1, 2)  # [B, C, T, h, w]
        token = (told["tokens"] * told["mask"]).sum(1) / told["mask"].sum(1).clamp(min=1)
        told_all = self.tell(torch.stack([token, timesteps / 1000, told["rate"] / 10], dim=1).to(self.null.dtype))
        return self.leave(nn.SiLU()(self.enter(video) + told_all[:, :, None, None, None])).transpose(1, 2)[:, 1:]


class Toy(System):
    Config, fingerprint = ToyConfig, "toy"

    def __init__(self, config: ToyConfig) -> None:
        self.config, self.codec, self.window = config, ToyCodec(), Window(4)
        self.network, self.scheduler = ToyNetwork(config.width), FlowMatchEulerDiscreteScheduler()
        self.sampler, self.size = Sampler(steps=3, guidance_scale=2.0, image_guidance_scale=1.5), (16, 16)

    @classmethod
    def opens(cls, folder: Path) -> bool:
        return False

    @classmethod
    def load(cls, source: str, config: Any, saved: SystemConfig | None) -> Toy:
        toy = cls(config)
        toy.network.load_state_dict(load_file(Path(source) / "toy.safetensors"))
        return toy

    def save_weights(self, folder: Path) -> None:
        save_file(self.network.state_dict(), folder / "toy.safetensors")

    def parts(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def encode_text(self, prompts: Sequence[str]) -> Text:
        rows = [[(ord(c) - 97) / 26 for c in prompt[:12]] + [0.0] * (12 - len(prompt)) for prompt in prompts]
        return {"tokens": torch.tensor(rows), "mask": torch.tensor([[i < len(p) for i in range(12)] for p in prompts])}

    def condition(self, given: Tensor, text: Text, *, fps: Tensor | None = None, **_: Any) -> Condition:
        rate = given.new_full((len(given),), self.fps) if fps is None else fps
        return {"first": self.codec.normalize(given[:, 0]), "rate": rate, "without": rate < 0, **text}

    def drop(self, condition: Condition, *, image: Tensor, text: Tensor, **_: Any) -> Condition:
        return condition | {"without": image, "mask": condition["mask"] & ~text[:, None]}

    def noise(self, shape: Sequence[int], generator: Any, **_: Any) -> Tensor:
        return 0.5**0.5 * (draw((shape[0], 1, *shape[2:]), generator) + draw(shape, generator))


SYSTEMS["toy"] = Toy
