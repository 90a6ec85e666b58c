"""Latents become files; a codec that compresses time decodes them together, and a video ends where it was asked to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy import BlockMeans

from contrastive_i2v.cli.outputs import write_outputs
from contrastive_i2v.data.images import read_image
from contrastive_i2v.data.video import probe, to_uint8


@pytest.mark.parametrize(
    ("temporal_downscale", "length", "frames", "parts"), [(1, None, 11, [8, 3]), (4, None, 41, [11]), (4, 38, 38, [11])]
)
def test_the_video_has_the_length_asked_for(
    tmp_path: Path, temporal_downscale: int, length: int | None, frames: int, parts: list[int]
) -> None:
    codec = BlockMeans(temporal_downscale)
    latents = torch.rand(11, 3, 2, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    told: list[int] = []
    stem = tmp_path / "a"
    written = write_outputs(stem, latents, codec, ("mp4", "png", "latents"), 8.0, length=length, progress=told.append)
    assert [path.name for path in written] == ["a.mp4", "a.png", "a.safetensors"] and told == parts
    info = probe(written[0])
    assert (info.frames, info.fps, info.height, info.width) == (frames, 8.0, 16, 16)
    expected = to_uint8(codec.decode(latents[None])[0, :frames])
    assert torch.equal(read_image(written[1]), torch.cat(list(expected), dim=-1)[None])
    assert torch.equal(load_file(written[2])["latents"], latents)
