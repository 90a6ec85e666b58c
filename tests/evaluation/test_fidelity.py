"""PSNR, SSIM and LPIPS against hand-made values and torchmetrics."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation.fidelity import load_lpips, lpips, psnr, ssim


def pair(clips: int = 2, frames: int = 3, height: int = 24, width: int = 17) -> tuple[Tensor, Tensor]:
    """Smooth videos and noisy copies, noisier with every frame, within [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 5, width), indexing="ij")
    phase = torch.rand(clips, frames, 3, 1, 1, generator=generator) * 6
    truth = 0.7 * torch.sin(x + phase) * torch.cos(y - phase)
    noise = torch.rand(truth.shape, generator=generator) - 0.5
    return truth + 0.2 * (1 + torch.arange(frames))[None, :, None, None, None] * noise, truth


def test_psnr_by_hand() -> None:
    """Off by 0.2 of a range of 2: 20 log10(10)."""
    truth = torch.zeros(1, 3, 3, 4, 4)
    offset = torch.tensor([0.0, 0.2, 2.0])[None, :, None, None, None]
    found = psnr(truth + offset, truth)
    assert found.dtype == torch.float64
    assert found.tolist() == [pytest.approx([math.inf, 20, 0], abs=1e-6)]


def test_psnr_and_ssim_equal_torchmetrics_frame_by_frame() -> None:
    image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is compared with")
    videos, truth = pair()
    ours = psnr(videos, truth), ssim(videos, truth)
    assert [one.shape for one in ours] == [(2, 3), (2, 3)]
    for clip in range(2):
        for frame in range(3):
            both = videos[clip, frame][None].double(), truth[clip, frame][None].double()
            theirs = image.peak_signal_noise_ratio(*both, data_range=2.0)
            assert float(ours[0][clip, frame]) == pytest.approx(float(theirs), rel=1e-6)
            intensities = [(one + 1) / 2 for one in both]
            theirs = image.structural_similarity_index_measure(*intensities, data_range=1.0)
            assert float(ours[1][clip, frame]) == pytest.approx(float(theirs), abs=1e-7)


def ssim_by_loop(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """SSIM of each pixel of one colour `[H, W]` in [0, 1], its window gathered pixel by pixel, mirrored at borders."""
    gaussian = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(gaussian, gaussian) / gaussian.sum() ** 2
    x, y = (np.pad(one.astype(np.float64), 5, mode="reflect") for one in (video, truth))
    found = np.zeros(video.shape)
    for row, column in np.ndindex(video.shape):
        a, b = (one[row : row + 11, column : column + 11] for one in (x, y))
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        luminance = (2 * mean_a * mean_b + 0.0001) / (mean_a**2 + mean_b**2 + 0.0001)
        found[row, column] = luminance * (2 * covariance + 0.0009) / (var_a + var_b + 0.0009)
    return found


def test_ssim_equals_a_loop_over_windows_of_intensities() -> None:
    videos, truth = pair(1, 2)
    expected = [
        np.mean(
            [
                ssim_by_loop(((x + 1) / 2).double().numpy(), ((y + 1) / 2).double().numpy())
                for x, y in zip(frame, true, strict=True)
            ]
        )
        for frame, true in zip(videos[0], truth[0], strict=True)
    ]
    assert ssim(videos, truth)[0].tolist() == pytest.approx(expected, abs=1e-7)


def test_ssim_around_mid_grey_is_not_that_of_pixels_around_zero() -> None:
    """Around mid-grey the means are 0 in [-1, 1], and similar frames look less alike there than they are."""
    videos, truth = pair(1, 1)
    videos = videos + 0.1
    image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is compared with")
    both = [(one[0].double() + 1) / 2 for one in (videos, truth)]
    theirs = float(image.structural_similarity_index_measure(*both, data_range=1.0))
    assert float(ssim(videos, truth)) == pytest.approx(theirs, abs=1e-7)
    symmetric = [one[0].double() for one in (videos, truth)]
    assert theirs - float(image.structural_similarity_index_measure(*symmetric, data_range=2.0)) > 0.02


def test_ssim_is_1_for_equal_frames_falls_with_noise_and_is_symmetric() -> None:
    videos, truth = pair()
    assert ssim(truth, truth).tolist() == [pytest.approx([1.0] * 3)] * 2
    found = ssim(videos, truth)
    assert bool((found.diff(dim=1) < 0).all())
    torch.testing.assert_close(ssim(truth, videos), found, rtol=1e-12, atol=0)


def test_ssim_of_flat_frames_by_hand() -> None:
    """Intensities 3/4 and 3/8, no structure: only (2 a b + c1) / (a^2 + b^2 + c1) is left, c1 = 0.0001."""
    a, b = torch.full((1, 1, 3, 8, 8), 0.5), torch.full((1, 1, 3, 8, 8), -0.25)
    assert float(ssim(a, b)) == pytest.approx((0.5625 + 0.0001) / (0.703125 + 0.0001), rel=1e-9)


def test_ssim_windows_have_sigma_one_and_a_half() -> None:
    """One white pixel in black: the weights of a Gaussian of 11 pixels, squared and summed, are in the moments."""
    truth = torch.full((1, 1, 3, 31, 31), -1.0)
    video = truth.clone()
    video[0, 0, :, 15, 15] = 1
    weights = [math.exp(-(k**2) / 4.5) for k in range(-5, 6)]
    total, c1, c2 = sum(weights), 0.0001, 0.0009
    flat = [u * v / total**2 for u in weights for v in weights]
    inside = sum(c1 * c2 / ((w**2 + c1) * (w - w**2 + c2)) for w in flat)
    assert float(ssim(video, truth)) == pytest.approx((31 * 31 - 121 + inside) / (31 * 31), rel=1e-9)


def test_lpips_calls_the_network_on_each_frame_with_its_truth() -> None:
    """A network with LPIPS' output, [B, 1, 1, 1]."""
    videos, truth = pair()

    def network(frames: Tensor, true: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return (frames - true).abs().mean(dim=(1, 2, 3), keepdim=True)

    found = lpips(videos.double(), truth.double(), network)
    torch.testing.assert_close(found, (videos - truth).abs().mean(dim=(2, 3, 4)).double())


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match="pip install lpips torchvision, or leave LPIPS out"):
        load_lpips()


def test_with_the_package_its_network_is_loaded_for_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    class LPIPS(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            self.net = net

        def forward(self, frames: Tensor, true: Tensor) -> Tensor:
            assert not self.training
            return torch.full((len(frames), 1, 1, 1), 0.25 if self.net == "vgg" else 0.5)

    package = type(sys)("lpips")
    package.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    videos, truth = pair(1, 2)
    assert lpips(videos, truth, load_lpips("vgg")).tolist() == [[0.25, 0.25]]


@pytest.mark.parametrize("metric", [psnr, ssim, lambda x, y: lpips(x, y, lambda a, b: a.mean(dim=(1, 2, 3)))])
def test_bad_videos_are_named(metric) -> None:  # type: ignore[no-untyped-def]
    videos, truth = pair()
    with pytest.raises(ValueError, match=r"got \[2, 3, 3, 24, 17\] and \[2, 2, 3, 24, 17\]"):
        metric(videos, truth[:, :2])
    truth[1, 0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="truth: expected finite pixels, got NaN or infinity in clip 1"):
        metric(videos, truth)


def test_frames_smaller_than_half_a_window_are_refused() -> None:
    tiny = torch.zeros(1, 1, 3, 5, 9)
    with pytest.raises(ValueError, match="at least 6 pixels a side"):
        ssim(tiny, tiny)
