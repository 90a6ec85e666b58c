"""Rollouts of held-out clips while training: an mp4 with the truth above, and how much of the motion is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.data.examples import encode_clip_frames
from contrastive_i2v.data.frames import valid_frames
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoError, probe, to_uint8, write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.sampling import rollout
from contrastive_i2v.system import System
from contrastive_i2v.training.config import TrainConfig


def motion(videos: Tensor) -> float:
    """Mean absolute difference of consecutive frames, `[N, F, 3, H, W]` in [-1, 1]."""
    return float(videos.diff(dim=1).abs().mean())


def side_by_side(rows: list[Tensor], *, scale: int = 2) -> Tensor:
    """Rows of videos `[N, F, 3, H, W]` as one, uint8 `[F, 3, rows H, N W]`, enlarged without smoothing."""
    grid = torch.cat([torch.cat(list(row.unbind(0)), dim=-1) for row in rows], dim=-2)
    return to_uint8(F.interpolate(grid, scale_factor=scale, mode="nearest"))


class Preview:
    """Rolls out the same held-out clips every so many steps into `folder/step-00000500.mp4`.

    Args:
        clips: their first valid frames are the truth; a short clip's last frame repeats.
        folder: where the videos go.
    """

    def __init__(self, clips: Sequence[Clip], system: System, config: TrainConfig, *, folder: Path) -> None:
        self.system, self.config, self.seed, self.folder = system, config.preview, config.seed, folder
        frames, pixels, first, self.captions = config.preview.frames, [], [], list[str]()
        for clip in clips:
            try:
                indices = valid_frames(probe(clip.path), clip, config.data.frames)[:frames]
                shown, raw = encode_clip_frames(clip, system, system.size, indices)
            except VideoError as error:
                print(f"left out of the previews: {error}")
                continue
            self.captions.append(clip.caption)
            pixels.append(torch.cat([shown, shown[-1:].expand(frames - len(shown), -1, -1, -1)]))
            first.append(system.codec.sample(raw[0]))
        if not pixels:
            raise InputError(f"{config.data.validation_path}: none of the clips for previews can be read")
        self.truth = torch.stack(pixels)  # [N, F, 3, H, W] in [-1, 1]
        self.first = torch.stack(first).to(system.device)  # [N, C, h, w], the autoencoder's own latents

    def due(self, step: int) -> bool:
        """Whether this step ends with a preview."""
        return step % self.config.every == 0

    def make(self, step: int) -> dict[str, float]:
        """Write the video; returns the rollouts' motion against the truth's (1 = as much; near 0 = they froze) and
        the pixel error at their last frame."""
        system, frames = self.system, self.truth.shape[1]
        latents = rollout(
            system,
            self.first,
            system.encode_text(self.captions),
            frames=(frames - 1) // system.codec.temporal_downscale + 1,
            sampler=self.config.over(system.sampler),
            seeds=[self.seed * 100_003 + i for i in range(len(self.captions))],
        )  # [N, f, C, h, w]
        videos = system.codec.decode(latents)[:, :frames].cpu().float()
        truth = self.truth[:, : videos.shape[1]]
        write_video(self.folder / f"step-{step:08d}.mp4", side_by_side([truth, videos]), fps=system.fps)
        return {
            "preview/motion_ratio": motion(videos) / max(motion(truth), 1e-6),
            "preview/last_frame_mse": float((videos[:, -1] - truth[:, -1]).square().mean()),
        }


def build_preview(config: TrainConfig, system: System) -> Preview | None:
    """The previews that a run asks for, of the first clips of its validation folder."""
    if config.data.validation_path is None or config.preview.every == 0:
        return None
    clips, _ = read_folder(config.data.validation_path)
    return Preview(clips[: config.preview.clips], system, config, folder=config.output / "previews")
