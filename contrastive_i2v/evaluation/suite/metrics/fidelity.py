"""How close generated frames are to the true ones, frame by frame: MSE, PSNR, SSIM, LPIPS."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from contrastive_i2v.evaluation.suite.measured import MeasuredVideos
from contrastive_i2v.evaluation.suite.scored import About, Scored, score_clips

define = partial(About, group="Fidelity")
MOST_DECIBELS = 100.0
MSE = define(
    name="frame_mse",
    title="Frame MSE",
    better="lower",
    definition="Mean squared error against the true frame, pixels in [-1, 1], over frames 1 to F - 1.",
)
PSNR = define(
    name="psnr",
    title="PSNR",
    better="higher",
    definition="10 log10(4 / MSE) of each frame, a mean over frames 1 to F - 1; a frame counts "
    f"{MOST_DECIBELS:g} dB at most, an exact one too.",
    unit="dB",
)
SSIM = define(
    name="ssim",
    title="SSIM",
    better="higher",
    definition="Structural similarity to the true frame (Wang et al., 2004): intensities from 0 to 1, c1 = 0.01^2, "
    "c2 = 0.03^2, a Gaussian window of 11 pixels with sigma 1.5, frames mirrored at their borders and every pixel "
    "counted (as torchmetrics), a mean over colours and over frames 1 to F - 1.",
)
LPIPS = define(
    name="lpips",
    title="LPIPS",
    better="lower",
    definition="Learned perceptual distance to the true frame (Zhang et al., 2018), a mean over frames 1 to F - 1.",
)


def fidelity_metrics(ours: MeasuredVideos) -> list[Scored]:
    """LPIPS where its network is there."""
    found = [
        _by_frame(ours, "fidelity", "mse", MSE),
        _by_frame(ours, "fidelity", "psnr", PSNR),
        _by_frame(ours, "fidelity", "ssim", SSIM),
    ]
    return [*found, _by_frame(ours, "lpips", "distance", LPIPS)] if ours.has("lpips") else found


def _by_frame(ours: MeasuredVideos, role: str, name: str, about: About) -> Scored:
    def read(kept: Mapping[str, Tensor]) -> Tensor:
        return kept[name].clamp(max=MOST_DECIBELS)  # the others are far below

    curves = ours.each(role, read)  # [N, F]
    return score_clips(about, curves[:, 1:].mean(dim=1), curves=curves)
