"""FrameInit: noise whose low frequencies are those of a noised still, or of any coarse video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from contrastive_i2v.errors import InputError

Filter = Literal["gaussian", "ideal", "butterworth"]


def low_pass_filter(
    size: Sequence[int], kind: Filter = "gaussian", *, cutoff: float = 0.25, cutoff_time: float = 0.25, order: int = 4
) -> Tensor:
    """G [T, h, w] float64 in the order of `torch.fft.fftn`, 1 = passes.

        d^2 = (f_t D0 / D0_t)^2 + f_h^2 + f_w^2,  f = 2 fftfreq(n), so 1 is the highest frequency
        gaussian     exp(-d^2 / (2 D0^2))
        ideal        d <= D0
        butterworth  1 / (1 + (d / D0)^(2 order))

    The zero frequency passes whole whatever the sizes, even or odd.

    Args:
        size: (T, h, w).
        cutoff, cutoff_time: D0 and D0_t, above 0.
        order: of the butterworth filter.

    Raises:
        InputError: another kind, or a cutoff that isn't positive.

    Sources: ConsistI2V (arXiv 2402.04324), section 4.2; Wu et al., FreeInit (arXiv 2312.07537), section 3.2.
    """
    if kind not in get_args(Filter):
        raise InputError(f"filter: expected one of {', '.join(get_args(Filter))}, got {kind!r}")
    if not (cutoff > 0 and cutoff_time > 0):
        raise InputError(f"cutoff, cutoff_time: expected numbers > 0, got {cutoff}, {cutoff_time}")
    time, height, width = (2 * torch.fft.fftfreq(n, dtype=torch.float64) for n in size)
    time = time * (cutoff / cutoff_time)
    square = time[:, None, None] ** 2 + height[:, None] ** 2 + width**2
    gain: Tensor
    if kind == "gaussian":
        gain = (-square / (2 * cutoff**2)).exp()
    elif kind == "ideal":
        gain = (square <= cutoff**2).double()
    else:
        gain = 1 / (1 + (square / cutoff**2) ** order)
    return gain


def frame_init(layout: Tensor, noise: Tensor, low_pass: Tensor) -> Tensor:
    """IFFT(G FFT(layout) + (1 - G) FFT(noise)) over time, height and width, in float32.

    Args:
        layout: [B, T, C, h, w], the still or coarse video, noised with `noise`.
        noise: [B, T, C, h, w].
        low_pass: G [T, h, w] from `low_pass_filter`.

    Returns:
        [B, T, C, h, w] float32.
    """
    axes, gain = (1, 3, 4), low_pass.to(noise.device)[:, None].float()  # [T, 1, h, w]
    mixed = gain * torch.fft.fftn(layout.float(), dim=axes) + (1 - gain) * torch.fft.fftn(noise.float(), dim=axes)
    result: Tensor = torch.fft.ifftn(mixed, dim=axes).real
    return result
