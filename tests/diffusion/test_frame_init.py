"""FrameInit's filters and mixing against sums over single frequencies in float64."""

from __future__ import annotations

import cmath
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from contrastive_i2v.diffusion.frame_init import Filter, frame_init, low_pass_filter
from contrastive_i2v.errors import InputError

SIZES = [(4, 6, 8), (3, 5, 7), (5, 4, 3), (1, 4, 5), (1, 1, 1), (2, 1, 6), (16, 8, 8)]
CUTOFFS = [(0.25, 0.25), (0.5, 0.2), (0.3, 0.9)]


def centred(index: int, size: int) -> int:
    """The frequency at an index of a Fourier transform of `size` values: 0, 1, ..., -2, -1, zero at index 0."""
    return index if index < (size + 1) // 2 else index - size


def gain(kind: str, square: float, cutoff: float, order: int) -> float:
    """G at the squared distance d^2."""
    distance = math.sqrt(square)
    if kind == "gaussian":
        return math.exp(-square / (2 * cutoff**2))
    if kind == "ideal":
        return float(distance <= cutoff)
    return 1 / (1 + (distance / cutoff) ** (2 * order))


def oracle(size: tuple[int, int, int], kind: str, cutoff: float, cutoff_time: float, order: int) -> Any:
    out = np.empty(size)
    for place in itertools.product(*map(range, size)):
        time, height, width = (2 * centred(i, n) / n for i, n in zip(place, size, strict=True))
        out[place] = gain(kind, (cutoff / cutoff_time * time) ** 2 + height**2 + width**2, cutoff, order)
    return out


@pytest.mark.parametrize("kind", ["gaussian", "ideal", "butterworth"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("cutoff", "cutoff_time"), CUTOFFS)
def test_filters_are_their_equations(
    kind: Filter, size: tuple[int, int, int], cutoff: float, cutoff_time: float
) -> None:
    low = low_pass_filter(size, kind, cutoff=cutoff, cutoff_time=cutoff_time, order=3)
    assert low.dtype == torch.float64 and low.shape == size
    expected = oracle(size, kind, cutoff, cutoff_time, order=3)
    np.testing.assert_allclose(low.numpy(), expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("kind", ["gaussian", "ideal", "butterworth"])
@pytest.mark.parametrize("size", SIZES)
def test_the_mean_passes_whole_and_opposite_frequencies_alike(kind: Filter, size: tuple[int, int, int]) -> None:
    """Zero frequency has gain 1 whatever the sizes, and G(-f) = G(f), so the mixture of real videos is real."""
    low = low_pass_filter(size, kind)
    assert float(low[0, 0, 0]) == 1.0 and float(low.min()) >= 0 and float(low.max()) <= 1
    opposite = low.flip((0, 1, 2)).roll((1, 1, 1), (0, 1, 2))
    torch.testing.assert_close(opposite, low, rtol=1e-12, atol=0)


def fourier(video: Any) -> Any:
    """The three-dimensional transform of [T, h, w], term by term."""
    out = np.zeros(video.shape, dtype=complex)
    for place in itertools.product(*map(range, video.shape)):
        for at in itertools.product(*map(range, video.shape)):
            turns = sum(f * x / n for f, x, n in zip(place, at, video.shape, strict=True))
            out[place] += video[at] * cmath.exp(-2j * math.pi * turns)
    return out


@pytest.mark.parametrize("size", [(2, 4, 4), (3, 3, 5), (1, 4, 3)])
@pytest.mark.parametrize("kind", ["gaussian", "ideal", "butterworth"])
def test_mixing_is_its_equation(size: tuple[int, int, int], kind: Filter) -> None:
    generator = np.random.default_rng(0)
    layout, noise = generator.standard_normal((2, 2, size[0], 3, *size[1:]))  # [B, T, C, h, w] each
    low = oracle(size, kind, 0.5, 0.4, 4)
    expected = np.empty_like(layout)
    for b, c in itertools.product(range(2), range(3)):
        mixed = low * fourier(layout[b, :, c]) + (1 - low) * fourier(noise[b, :, c])
        back = np.conj(fourier(np.conj(mixed))) / mixed.size
        np.testing.assert_allclose(back.imag, 0, atol=1e-12)
        expected[b, :, c] = back.real
    filtered = low_pass_filter(size, kind, cutoff=0.5, cutoff_time=0.4)
    actual = frame_init(torch.tensor(layout), torch.tensor(noise), filtered)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_equal_videos_stay(size: tuple[int, int, int]) -> None:
    """The mixture of a video with itself is that video, at even, odd and single sizes."""
    video = torch.randn(1, size[0], 2, *size[1:])
    torch.testing.assert_close(frame_init(video, video, low_pass_filter(size)), video, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_low_comes_from_the_layout_and_the_rest_from_the_noise(size: tuple[int, int, int]) -> None:
    """An ideal filter: the layout's mean is kept exactly, the noise's lost; at each single frequency one of the two."""
    layout, noise = torch.randn(2, 1, size[0], 2, *size[1:], dtype=torch.float64)
    low = low_pass_filter(size, "ideal", cutoff=0.6)
    spectrum = torch.fft.fftn(frame_init(layout, noise, low).double(), dim=(1, 3, 4))
    chosen = torch.where(low[:, None] > 0, *(torch.fft.fftn(x, dim=(1, 3, 4)) for x in (layout, noise)))
    torch.testing.assert_close(spectrum, chosen, rtol=1e-5, atol=1e-4)
    mean = frame_init(layout, noise, low).double().mean((1, 3, 4))
    torch.testing.assert_close(mean, layout.mean((1, 3, 4)), rtol=1e-5, atol=1e-6)


def test_a_moving_layout_is_followed() -> None:
    """A bright bar that wanders over the layout is where the result, smoothed, is brightest; a still one stays."""
    frames, width = 8, 16
    bar = torch.zeros(1, frames, 1, 4, width)
    for frame in range(frames):
        bar[:, frame, :, :, 2 * frame : 2 * frame + 2] = 8
    noise = torch.randn(1, frames, 1, 4, width, generator=torch.Generator().manual_seed(0))
    for layout, moves in ((bar, True), (bar[:, :1].expand_as(bar), False)):
        mixed = frame_init(layout, noise, low_pass_filter((frames, 4, width), cutoff=0.5, cutoff_time=0.5))
        blurred = mixed.mean(3)[0, :, 0]  # [T, w]
        blurred = blurred + blurred.roll(-1, 1)
        found = blurred.argmax(dim=1)
        assert found.tolist() == ([2 * frame for frame in range(frames)] if moves else [0] * frames)


def test_an_unknown_filter_and_cutoffs_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="filter: expected one of gaussian, ideal, butterworth, got 'box'"):
        low_pass_filter((2, 4, 4), "box")  # type: ignore[arg-type]
    for cutoffs in ({"cutoff": 0.0}, {"cutoff_time": -1.0}, {"cutoff": math.nan}):
        with pytest.raises(InputError, match="cutoff, cutoff_time: expected numbers > 0, got"):
            low_pass_filter((2, 4, 4), **cutoffs)
