"""Rollouts of held-out clips while training: an mp4 with the truth above, and how much of the motion is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.data.examples import encode_clip_frames
from contrastive_i2v.data.frames import valid_frames
from contrastive_i2v.data.reading import probe_clip
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoError, to_uint8, write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.sampling import fill_in, first_frames, rollout
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
        self.window = system.window
        frames = config.preview.frames if self.window.rolls else self.window.length
        pixels, given, self.captions = [], [], list[str]()
        for clip in clips:
            try:
                indices = valid_frames(probe_clip(clip), clip, config.data.frames)[:frames]
                places = [0] if self.window.rolls else list(self.window.given)
                shown, raw = encode_clip_frames(clip, system, system.size, indices, given=places)
            except VideoError as error:
                print(f"left out of the previews: {error}")
                continue
            self.captions.append(clip.caption)
            pixels.append(torch.cat([shown, shown[-1:].expand(frames - len(shown), -1, -1, -1)]))
            given.append(system.codec.sample(raw))
        if not pixels:
            raise InputError(f"{config.data.validation_path}: none of the clips for previews can be read")
        self.file: Path | None = None
        """The last one that was written."""
        self.truth = torch.stack(pixels)  # [N, F, 3, H, W] in [-1, 1]
        self.given = torch.stack(given)  # [N, n, C, h, w], the autoencoder's own latents
        self.text = system.encode_text(self.captions)

    def due(self, step: int) -> bool:
        """Whether this step ends with a preview."""
        return step % self.config.every == 0

    def make(self, step: int) -> dict[str, float]:
        """Write the video; returns its motion against the truth's (1 = as much; near 0 = it froze) and the pixel error
        at its last frame, or between keyframes the mean one. An image model gives pictures, and no numbers."""
        system, truth = self.system, self.truth
        videos = system.codec.decode(self._latents())[:, : truth.shape[1]].cpu().float()
        truth = truth[:, : videos.shape[1]]
        name, grid = self.folder / f"step-{step:08d}", side_by_side([truth, videos])
        if not (self.window.rolls or self.window.given):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = name.with_suffix(".png")
            Image.fromarray(grid[0].permute(1, 2, 0).contiguous().numpy()).save(self.file)
            return {}
        self.file = name.with_suffix(".mp4")
        write_video(self.file, grid, fps=system.fps)
        error = (videos - truth).square().mean(dim=(0, 2, 3, 4))  # [F]
        last = float(error[-1]) if self.window.rolls else float(error.mean())
        return {"preview/motion_ratio": motion(videos) / max(motion(truth), 1e-6), "preview/last_frame_mse": last}

    def _latents(self) -> Tensor:
        """[N, f, C, h, w], normalised."""
        system, given = self.system, self.given.to(self.system.device)
        text = {name: value.to(system.device) for name, value in self.text.items()}
        seeds = [self.seed * 100_003 + i for i in range(len(self.captions))]
        sampler = self.config.over(system.sampler)
        if self.window.rolls:
            frames = (self.truth.shape[1] - 1) // system.codec.temporal_downscale + 1
            first = self.truth[:, 0]
            return rollout(system, given[:, 0], text, frames=frames, sampler=sampler, seeds=seeds, pixels=first)
        if self.window.given:
            return fill_in(system, given, text, sampler=sampler, seeds=seeds)
        own = first_frames(
            system, text, size=system.size, seeds=seeds, sampler=replace(sampler, image_guidance_scale=1)
        )
        return system.codec.normalize(own)[:, None]


def build_preview(config: TrainConfig, system: System) -> Preview | None:
    """The previews that a run asks for, of the first clips of its validation folder."""
    if config.data.validation_path is None or config.preview.every == 0:
        return None
    source = config.data.validation_source
    found = read(config.data.validation_path, source, seed=config.seed, purpose="validation")
    return Preview(found.clips[: config.preview.clips], system, config, folder=config.output / "previews")
