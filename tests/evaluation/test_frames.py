"""Pixel metrics against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from contrastive_i2v.evaluation.frames import frame_mse, motion


def ramp(clips: int, frames: int, step: float) -> torch.Tensor:
    """Videos whose every pixel grows by `step` a frame, from 0."""
    values = step * torch.arange(frames, dtype=torch.float32)
    return values[None, :, None, None, None].expand(clips, frames, 3, 5, 7).clone()


def test_frame_mse_is_the_square_of_a_constant_offset_in_each_frame() -> None:
    truth = torch.rand(2, 4, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    offset = torch.tensor([[0.0, 0.25, -0.5, 1.0], [2.0, 0.0, 0.125, -1.5]])
    error = frame_mse(truth + offset[:, :, None, None, None], truth)
    assert error.dtype == torch.float64
    torch.testing.assert_close(error, offset.double().square(), atol=1e-6, rtol=1e-6)


def test_frame_mse_averages_over_pixels_and_channels() -> None:
    videos = torch.zeros(1, 2, 3, 5, 7)
    videos[0, 1, 2, 4, 6] = 2.0
    assert frame_mse(videos, torch.zeros_like(videos)).tolist() == [[0.0, 4 / 105]]


def test_motion_of_a_still_a_ramp_and_a_flicker() -> None:
    still, slow = ramp(1, 4, 0.0), ramp(1, 4, 0.25)
    flicker = ramp(1, 4, 1.0) % 2
    assert motion(torch.cat([still, slow, flicker])).tolist() == [0.0, 0.25, 1.0]


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3, 3, 5, 7\] and \[2, 4, 3, 5, 7\]"):
        frame_mse(ramp(2, 3, 0), ramp(2, 4, 0))
    with pytest.raises(ValueError, match="F >= 2"):
        motion(ramp(2, 1, 0))
