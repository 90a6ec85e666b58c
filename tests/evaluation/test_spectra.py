"""Shares of high frequencies of waves whose frequencies are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation.spectra import spatial_high_share, temporal_high_share

SIZE, FRAMES = 32, 16


def wave(u: int, v: int) -> Tensor:
    """`[32, 32]` with u and v whole periods along its sides."""
    y, x = torch.meshgrid(*(torch.arange(SIZE, dtype=torch.float64),) * 2, indexing="ij")
    return torch.cos(2 * torch.pi * (u * y + v * x) / SIZE + 0.3)


def still(frame: Tensor, frames: int = 3) -> Tensor:
    """`[1, F, 3, H, W]`."""
    return frame.expand(1, frames, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("u", "v", "share"), [(2, 1, 0), (0, 8, 0), (0, 9, 1), (12, 0, 1), (6, 6, 1), (5, 6, 0), (16, 16, 1)]
)  # 8 periods of 32 pixels are a quarter of a cycle each; 6 sqrt 2 = 8.5 is above it, sqrt(25 + 36) = 7.8 is below
def test_one_wave_is_low_or_high(u: int, v: int, share: float) -> None:
    assert spatial_high_share(still(wave(u, v) + 0.5)).tolist() == [pytest.approx([share] * 3, abs=1e-12)]


def test_a_sum_of_waves_has_the_share_of_their_energies() -> None:
    found = spatial_high_share(still(2 * wave(1, 2) + wave(3, 11) - 7))
    assert found[0].tolist() == pytest.approx([1 / 5] * 3)


def test_each_frame_is_for_itself_and_a_flat_one_has_none() -> None:
    video = torch.stack([torch.full((SIZE, SIZE), 0.1), wave(1, 1), wave(1, 11)])[None, :, None].expand(1, 3, 3, -1, -1)
    assert spatial_high_share(video).tolist() == [pytest.approx([0, 0, 1])]
    assert spatial_high_share(video.float()).tolist() == [pytest.approx([0, 0, 1])]


def test_agrees_with_numpy_on_noise_and_on_frames_that_are_not_square() -> None:
    video = torch.randn(2, 4, 3, 18, 27, generator=torch.Generator().manual_seed(0))
    frames = video.double().numpy()
    frames = frames - frames.mean(axis=(-2, -1), keepdims=True)
    energy = (np.abs(np.fft.fft2(frames)) ** 2).sum(axis=2)
    high = np.sqrt(np.fft.fftfreq(18)[:, None] ** 2 + np.fft.fftfreq(27) ** 2) > 0.25
    expected = energy[..., high].sum(axis=-1) / energy.sum(axis=(-2, -1))
    np.testing.assert_allclose(spatial_high_share(video).numpy(), expected, rtol=1e-10)
    pixels = video.double().numpy().reshape(2, 4, -1)
    energy = (np.abs(np.fft.fft(pixels - pixels.mean(axis=1, keepdims=True), axis=1)) ** 2).sum(axis=2)
    np.testing.assert_allclose(temporal_high_share(video).numpy(), energy[:, 2] / energy.sum(axis=1), rtol=1e-10)


@pytest.mark.parametrize(("periods", "share"), [(1, 0), (4, 0), (5, 1), (8, 1)])
def test_waves_over_time(periods: int, share: float) -> None:
    time = torch.cos(2 * torch.pi * periods * torch.arange(FRAMES, dtype=torch.float64) / FRAMES)
    video = (0.3 + time[:, None, None, None] * wave(1, 0)).expand(1, FRAMES, 3, SIZE, SIZE)
    assert temporal_high_share(video).tolist() == pytest.approx([share], abs=1e-12)
    slow = torch.cos(2 * torch.pi * torch.arange(FRAMES, dtype=torch.float64) / FRAMES)[:, None, None, None]
    mixed = video + 3 * (slow * wave(1, 0)).expand_as(video)
    amplitudes = (2 if periods == 8 else 1, 9)  # at Nyquist a cosine's two halves fall on one frequency
    expected = share * amplitudes[0] / sum(amplitudes)
    assert temporal_high_share(mixed).tolist() == pytest.approx([expected], abs=1e-12)


def test_a_still_video_has_none_and_flicker_is_all_high() -> None:
    assert temporal_high_share(still(wave(3, 11), FRAMES)).tolist() == [0]
    sign = torch.tensor([1.0, -1.0]).repeat(FRAMES // 2)[:, None, None, None]
    assert temporal_high_share(still(wave(1, 1), FRAMES) * sign).tolist() == pytest.approx([1])


def test_refusals() -> None:
    for measure in (spatial_high_share, temporal_high_share):
        with pytest.raises(ValueError, match="videos: expected"):
            measure(torch.zeros(3, 3, 8, 8))
