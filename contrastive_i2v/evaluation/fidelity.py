"""How close generated frames are to the true ones, frame by frame: PSNR, SSIM, LPIPS.

Videos are `[N, F, 3, H, W]` in [-1, 1]; frame 0 is the given one. PSNR is the same on any range, SSIM is defined on
intensities from 0 to L, so it maps them to [0, 1]. Clips go one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from contrastive_i2v.evaluation.frames import frame_mse

DATA_RANGE = 2.0
"""Of pixels in [-1, 1], for PSNR."""
C1, C2 = 0.01**2, 0.03**2
"""SSIM's constants (K1 L)^2 and (K2 L)^2 for intensities from 0 to L = 1."""
RADIUS = 5
"""Of SSIM's window of 11 pixels."""
SIGMA = 1.5


def psnr(videos: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels: `10 log10(2^2 / frame_mse(videos, truth))`.

    Args:
        videos: `[N, F, 3, H, W]` in [-1, 1].
        truth: the same shape.

    Returns:
        `[N, F]` float64; infinite where frames are equal.

    Raises:
        ValueError: the shapes differ, or a NaN or infinity.
    """
    errors = torch.cat([frame_mse(video[None], true[None]) for video, true in _clips(videos, truth)])
    return 10 * (DATA_RANGE**2 / errors).log10()


def ssim(videos: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004, equation 13), a mean over pixels and colours.

        (2 mu_x mu_y + c1) (2 sigma_xy + c2) / ((mu_x^2 + mu_y^2 + c1) (sigma_x^2 + sigma_y^2 + c2))

    on intensities x = (pixel + 1) / 2 from 0 to L = 1, with c1 = 0.01^2, c2 = 0.03^2 and moments (of weights that sum
    to 1, without Bessel's correction) in a Gaussian window of 11 x 11 pixels, sigma 1.5. The means make it depend on
    where black is, so it isn't the same on [-1, 1].

    Border rule: frames are mirrored about their border pixels, which aren't repeated, and every pixel counts in the
    mean, as in torchmetrics. scikit-image and the paper's own code leave the outer 5 pixels out of the mean.

    Args:
        videos: `[N, F, 3, H, W]` in [-1, 1], H and W >= 6.
        truth: the same shape.

    Returns:
        `[N, F]` float64 in [-1, 1]; 1 where frames are equal.

    Raises:
        ValueError: the shapes differ, frames are too small, or a NaN or infinity.
    """
    if videos.ndim == 5 and min(videos.shape[-2:]) <= RADIUS:
        raise ValueError(f"videos: expected frames of at least {RADIUS + 1} pixels a side, got {list(videos.shape)}")
    return torch.stack(
        [_ssim((video.double() + 1) / 2, (true.double() + 1) / 2) for video, true in _clips(videos, truth)]
    )


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    mu_x, mu_y, xx, yy, xy = _windowed(torch.stack([x, y, x * x, y * y, x * y]))  # [F, 3, H, W] each
    var_x, var_y, cov = (xx - mu_x**2).clamp(min=0), (yy - mu_y**2).clamp(min=0), xy - mu_x * mu_y
    similarity: Tensor = (2 * mu_x * mu_y + C1) * (2 * cov + C2) / ((mu_x**2 + mu_y**2 + C1) * (var_x + var_y + C2))
    return similarity.mean(dim=(1, 2, 3))


def _windowed(images: Tensor) -> Tensor:
    """Gaussian mean around each pixel of `[..., H, W]`: a matrix product along the columns, and one along the rows."""
    height, width = images.shape[-2:]
    return _window(height, images) @ images @ _window(width, images).T


def _window(size: int, like: Tensor) -> Tensor:
    """`[size, size]`: row i holds the Gaussian weights around i, those beyond a border on their mirrored pixels."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=like.device)
    weights = (-(offsets.to(like.dtype) ** 2) / (2 * SIGMA**2)).exp()
    at = (torch.arange(size, device=like.device)[:, None] + offsets).abs()
    mirrored = torch.where(at >= size, 2 * (size - 1) - at, at)
    return like.new_zeros(size, size).scatter_add_(1, mirrored, (weights / weights.sum()).expand(size, -1))


def lpips(videos: Tensor, truth: Tensor, network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Learned perceptual distance (Zhang et al., 2018) of each frame: `network(frame, true frame)`.

    Args:
        videos: `[N, F, 3, H, W]` in [-1, 1].
        truth: the same shape.
        network: two batches `[F, 3, H, W]` in [-1, 1] -> F distances, as `load_lpips` returns one.

    Returns:
        `[N, F]` float64; 0 where frames are equal.

    Raises:
        ValueError: the shapes differ, or a NaN or infinity.
    """
    with torch.no_grad():
        distances = [network(video.float(), true.float()).reshape(-1) for video, true in _clips(videos, truth)]
    return torch.stack(distances).double()


def load_lpips(backbone: str = "alex") -> Callable[[Tensor, Tensor], Tensor]:
    """The network of the optional package `lpips`, in eval mode on the CPU.

    Args:
        backbone: "alex" (the authors' choice for evaluation), "vgg" or "squeeze"; torchvision's weights of it must be
            in torch's cache, or it downloads them.

    Raises:
        ImportError: the package isn't there, or can't be imported; the message says how to install it.
    """
    try:
        package = import_module("lpips")
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch raises the second
        raise ImportError(
            f"LPIPS needs the package lpips and a torchvision that fits torch {torch.__version__} ({error}): "
            "pip install lpips torchvision, or leave LPIPS out"
        ) from error
    network = package.LPIPS(net=backbone, verbose=False).eval()
    return network  # type: ignore[no-any-return]


def _clips(videos: Tensor, truth: Tensor) -> list[tuple[Tensor, Tensor]]:
    if videos.ndim != 5 or videos.shape != truth.shape or videos.numel() == 0:
        raise ValueError(
            f"videos, truth: expected the same [N, F, 3, H, W], got {list(videos.shape)} and {list(truth.shape)}"
        )
    clips = list(zip(videos, truth, strict=True))
    for at, clip in enumerate(clips):
        for name, one in zip(("videos", "truth"), clip, strict=True):
            if not math.isfinite(float(one.sum(dtype=torch.float64))):
                raise ValueError(f"{name}: expected finite pixels, got NaN or infinity in clip {at}")
    return clips
