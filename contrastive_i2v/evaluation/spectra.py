"""How much of a video's change, over a frame or over time, is fine: shares of spectral energy above a frequency.

Blur and averaged samples lose high frequencies, noise and flicker add them. Videos are `[N, F, 3, H, W]`; everything is
float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

CUT = 0.25
"""Cycles a pixel, or a frame: half of the highest that samples can hold."""
LEAST_VARIANCE = 1e-20
"""Below it a frame, or a video over time, is constant but for rounding."""


def spatial_high_share(videos: Tensor, cut: float = CUT) -> Tensor:
    """Share of each frame's spectral energy at a radius above `cut` cycles a pixel.

        X = fft2(frame - its mean of each colour)
        share = sum over colours, sqrt(u^2 + v^2) > cut, of |X[u, v]|^2 / sum over all

    Args:
        videos: `[N, F, 3, H, W]`.

    Returns:
        `[N, F]` float64 in [0, 1]; 0 for a frame of one colour.

    Raises:
        ValueError: another number of dimensions.
    """
    _check(videos)
    height, width = videos.shape[-2:]
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)
    radius = torch.hypot(torch.fft.fftfreq(height, dtype=torch.float64)[:, None], columns)  # [H, W // 2 + 1]
    weight = _of_halves(width)
    shares = []
    for video in videos:
        frames = video.double()
        frames = frames - frames.mean(dim=(-2, -1), keepdim=True)
        energy = torch.view_as_real(torch.fft.rfft2(frames)).square().sum(dim=(1, -1)) * weight  # [F, H, W // 2 + 1]
        share = energy[:, radius > cut].sum(dim=1) / energy.sum(dim=(1, 2)).clamp(min=1e-300)
        shares.append(share * (frames.square().mean(dim=(1, 2, 3)) > LEAST_VARIANCE))
    return torch.stack(shares)


def temporal_high_share(videos: Tensor, cut: float = CUT) -> Tensor:
    """Share of the spectral energy over time, of all pixels, above `cut` cycles a frame.

        X = fft over frames of (pixel - its mean over time),   share = sum |f| > cut of |X[f]|^2 / sum over all

    Args:
        videos: `[N, F, 3, H, W]`.

    Returns:
        `[N]` float64 in [0, 1]; 0 for a still video.

    Raises:
        ValueError: another number of dimensions.
    """
    _check(videos)
    frequency = torch.fft.rfftfreq(videos.shape[1], dtype=torch.float64)
    weight = _of_halves(videos.shape[1])
    shares = []
    for video in videos:
        pixels = video.double().flatten(1)  # [F, 3 H W]
        pixels = pixels - pixels.mean(dim=0)
        energy = torch.view_as_real(torch.fft.rfft(pixels, dim=0)).square().sum(dim=(1, 2)) * weight  # [F // 2 + 1]
        share = energy[frequency > cut].sum() / energy.sum().clamp(min=1e-300)
        shares.append(share * (pixels.square().mean() > LEAST_VARIANCE))
    return torch.stack(shares)


def _of_halves(count: int) -> Tensor:
    """How often each frequency of a real signal's half spectrum is in the whole one: `[count // 2 + 1]` of 1 and 2."""
    weight = torch.full((count // 2 + 1,), 2.0, dtype=torch.float64)
    weight[0] = 1
    if count % 2 == 0:
        weight[-1] = 1
    return weight


def _check(videos: Tensor) -> None:
    if videos.ndim != 5 or 0 in videos.shape:
        raise ValueError(f"videos: expected [N, F, 3, H, W], none of them 0, got {list(videos.shape)}")
