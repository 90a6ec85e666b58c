"""Rollouts of held-out clips while training: an mp4 with the truth above, and how much of the motion is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.data.frames import FramePairConfig, valid_frames
from contrastive_i2v.data.latents import encode_clip_frames
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import probe, to_uint8, write_video
from contrastive_i2v.models import InstructPix2Pix
from contrastive_i2v.sampling import rollout
from contrastive_i2v.training.config import PreviewConfig


@dataclass(frozen=True)
class HeldOut:
    """Clips to roll out: their prompts, first latents and true frames."""

    captions: list[str]
    pixels: Tensor
    """The true valid frames `[N, F, 3, H, W]` in [-1, 1]; a short clip's last frame repeats."""
    first_latents: Tensor
    """`[N, C, h, w]`, unscaled."""
    prompt_embeds: Tensor
    """`[N, L, E]`."""


def load_held_out(
    clips: list[Clip], model: InstructPix2Pix, *, resolution: int, frames: int, pairs: FramePairConfig
) -> HeldOut:
    """Read the first `frames` valid frames of each clip and encode what a rollout starts from."""
    device = next(model.vae.parameters()).device
    pixels, latents = [], []
    for clip in clips:
        indices = valid_frames(probe(clip.path), clip, pairs)[:frames]
        shown, moments = encode_clip_frames(clip, model, resolution, indices)
        pixels.append(torch.cat([shown, shown[-1:].expand(frames - len(shown), -1, -1, -1)]))
        latents.append(moments[0].chunk(2)[0])
    captions = [clip.caption for clip in clips]
    return HeldOut(captions, torch.stack(pixels), torch.stack(latents).to(device), model.encode_prompts(captions))


def roll_out(held_out: HeldOut, model: InstructPix2Pix, config: PreviewConfig, *, seed: int) -> Tensor:
    """Generated videos `[N, F, 3, H, W]` in [-1, 1] of the held-out first frames and captions."""
    latents = rollout(
        model.denoiser,
        held_out.first_latents,
        held_out.prompt_embeds,
        model.encode_prompts([""]),
        frames=held_out.pixels.shape[1],
        scheduler=model.scheduler,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        image_guidance_scale=config.image_guidance_scale,
        scaling_factor=model.scaling_factor,
        seeds=[seed * 100_003 + i for i in range(len(held_out.captions))],
    )  # [N, F, C, h, w]
    pixels = model.decode_latents(latents.flatten(0, 1))
    return pixels.reshape(*latents.shape[:2], *pixels.shape[1:]).cpu().float()


def motion(videos: Tensor) -> float:
    """Mean absolute difference of consecutive frames, `[N, F, 3, H, W]` in [-1, 1]."""
    return float(videos.diff(dim=1).abs().mean())


def side_by_side(rows: list[Tensor], *, scale: int = 2) -> Tensor:
    """Rows of videos `[N, F, 3, H, W]` as one, uint8 `[F, 3, rows H, N W]`, enlarged without smoothing."""
    grid = torch.cat([torch.cat(list(row.unbind(0)), dim=-1) for row in rows], dim=-2)
    return to_uint8(F.interpolate(grid, scale_factor=scale, mode="nearest"))


class Preview:
    """Rolls out the same held-out clips every `config.every` steps into `folder/step-00000500.mp4`."""

    def __init__(
        self, held_out: HeldOut, model: InstructPix2Pix, config: PreviewConfig, *, folder: Path, seed: int
    ) -> None:
        self.held_out, self.model, self.config, self.folder, self.seed = held_out, model, config, folder, seed

    def due(self, step: int) -> bool:
        """Whether this step ends with a preview."""
        return step % self.config.every == 0

    def make(self, step: int) -> dict[str, float]:
        """Write the video; returns the rollouts' motion against the truth's (1 = as much; near 0 = they froze) and
        the pixel error at their last frame."""
        truth = self.held_out.pixels
        videos = roll_out(self.held_out, self.model, self.config, seed=self.seed)
        write_video(self.folder / f"step-{step:08d}.mp4", side_by_side([truth, videos]), fps=5.0)
        return {
            "preview/motion_ratio": motion(videos) / max(motion(truth), 1e-6),
            "preview/last_frame_mse": float((videos[:, -1] - truth[:, -1]).square().mean()),
        }
