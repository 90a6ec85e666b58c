"""Latents become files: mp4, gif, png and safetensors, for every command that makes videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from contrastive_i2v.data.video import to_uint8, write_gif, write_strip, write_video
from contrastive_i2v.files import write_whole
from contrastive_i2v.system import Codec

Format = Literal["mp4", "gif", "png", "latents"]
FRAMES_AT_ONCE = 8
"""Frames that an image autoencoder decodes before they become uint8."""


def write_outputs(
    stem: Path,
    latents: Tensor,
    codec: Codec,
    formats: Sequence[Format],
    fps: float,
    *,
    length: int | None = None,
    progress: Callable[[int], object] = lambda frames: None,
) -> list[Path]:
    """Decode normalised latents `[f, C, h, w]` and write `stem.{format}`; returns the files.

    Args:
        length: frames of the video; None = all that the latents hold.
        progress: called with the number of latent frames of each part that is decoded.
    """
    written = []
    frames = latents
    if {*formats} - {"latents"}:
        parts = []
        for part in torch.split(latents, FRAMES_AT_ONCE if codec.temporal_downscale == 1 else len(latents)):
            parts.append(to_uint8(codec.decode(part[None])[0]).cpu())
            progress(len(part))
        frames = torch.cat(parts)[:length]
    for kind in formats:
        path = stem.with_suffix(".safetensors" if kind == "latents" else f".{kind}")
        if kind == "mp4":
            write_video(path, frames, fps)
        elif kind == "gif":
            write_gif(path, frames, fps)
        elif kind == "png":
            write_strip(path, frames)
        else:
            blob = save({"latents": latents.cpu().contiguous()})
            write_whole(path, lambda part, blob=blob: part.write_bytes(blob))  # type: ignore[misc]
        written.append(path)
    return written
