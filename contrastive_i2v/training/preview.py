"""Rollouts of held-out clips while training: an mp4 with the truth above, and how much of the motion is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.data.examples import encode_clip_frames
from contrastive_i2v.data.frames import FramesConfig, valid_frames
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import probe, to_uint8, write_video
from contrastive_i2v.sampling import rollout
from contrastive_i2v.system import System
from contrastive_i2v.training.config import PreviewConfig, TrainConfig


@dataclass(frozen=True)
class HeldOut:
    """Clips to roll out: their prompts, first latents and true frames."""

    captions: list[str]
    pixels: Tensor
    """The true valid frames `[N, F, 3, H, W]` in [-1, 1]; a short clip's last frame repeats."""
    first: Tensor
    """`[N, C, h, w]`, the autoencoder's own latents of the first frames."""


def load_held_out(clips: list[Clip], system: System, *, frames: int, config: FramesConfig) -> HeldOut:
    """Read the first `frames` valid frames of each clip and encode what a rollout starts from."""
    pixels, latents = [], []
    for clip in clips:
        indices = valid_frames(probe(clip.path), clip, config)[:frames]
        shown, raw = encode_clip_frames(clip, system, system.size, indices)
        pixels.append(torch.cat([shown, shown[-1:].expand(frames - len(shown), -1, -1, -1)]))
        latents.append(system.codec.sample(raw[0]))
    return HeldOut([clip.caption for clip in clips], torch.stack(pixels), torch.stack(latents).to(system.device))


def roll_out(held_out: HeldOut, system: System, config: PreviewConfig, *, seed: int) -> Tensor:
    """Generated videos `[N, F, 3, H, W]` in [-1, 1] of the held-out first frames and captions."""
    frames = held_out.pixels.shape[1]
    latents = rollout(
        system,
        held_out.first,
        system.encode_text(held_out.captions),
        frames=(frames - 1) // system.codec.temporal_downscale + 1,
        sampler=config.over(system.sampler),
        seeds=[seed * 100_003 + i for i in range(len(held_out.captions))],
    )  # [N, f, C, h, w]
    return system.codec.decode(latents)[:, :frames].cpu().float()


def motion(videos: Tensor) -> float:
    """Mean absolute difference of consecutive frames, `[N, F, 3, H, W]` in [-1, 1]."""
    return float(videos.diff(dim=1).abs().mean())


def side_by_side(rows: list[Tensor], *, scale: int = 2) -> Tensor:
    """Rows of videos `[N, F, 3, H, W]` as one, uint8 `[F, 3, rows H, N W]`, enlarged without smoothing."""
    grid = torch.cat([torch.cat(list(row.unbind(0)), dim=-1) for row in rows], dim=-2)
    return to_uint8(F.interpolate(grid, scale_factor=scale, mode="nearest"))


class Preview:
    """Rolls out the same held-out clips every `config.every` steps into `folder/step-00000500.mp4`."""

    def __init__(self, held_out: HeldOut, system: System, config: PreviewConfig, *, folder: Path, seed: int) -> None:
        self.held_out, self.system, self.config, self.folder, self.seed = held_out, system, config, folder, seed

    def due(self, step: int) -> bool:
        """Whether this step ends with a preview."""
        return step % self.config.every == 0

    def make(self, step: int) -> dict[str, float]:
        """Write the video; returns the rollouts' motion against the truth's (1 = as much; near 0 = they froze) and
        the pixel error at their last frame."""
        truth = self.held_out.pixels
        videos = roll_out(self.held_out, self.system, self.config, seed=self.seed)
        truth = truth[:, : videos.shape[1]]
        write_video(self.folder / f"step-{step:08d}.mp4", side_by_side([truth, videos]), fps=self.system.fps)
        return {
            "preview/motion_ratio": motion(videos) / max(motion(truth), 1e-6),
            "preview/last_frame_mse": float((videos[:, -1] - truth[:, -1]).square().mean()),
        }


def build_preview(config: TrainConfig, system: System) -> Preview | None:
    """The previews that a run asks for, of the first clips of its validation folder."""
    if config.data.validation_path is None or config.preview.every == 0:
        return None
    clips, _ = read_folder(config.data.validation_path)
    held_out = load_held_out(
        clips[: config.preview.clips], system, frames=config.preview.frames, config=config.data.frames
    )
    return Preview(held_out, system, config.preview, folder=config.output / "previews", seed=config.seed)
