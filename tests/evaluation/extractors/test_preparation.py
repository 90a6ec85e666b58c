from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation.extractors.preparation import (
    CENTRE_SQUARE,
    VBENCH_BACKGROUND,
    VBENCH_I2V_BACKGROUND,
    VBENCH_I2V_SUBJECT,
    VBENCH_SUBJECT,
    Resize,
    check_frames,
    check_videos,
    in_chunks,
    normalise,
    stretch,
)


def test_stretching_keeps_a_ramp_a_ramp() -> None:
    ramp = torch.linspace(-0.75, 0.75, 32).expand(1, 3, 8, 32)
    small = stretch(ramp, 4, 16)
    inner = small[0, 0, 0, 3:-3]
    expected = (ramp[0, 0, 0, 0::2] + ramp[0, 0, 0, 1::2])[3:-3] / 2  # each output pixel lies between two inputs
    torch.testing.assert_close(inner, expected, atol=1e-6, rtol=0)


def test_stretching_never_leaves_the_range_of_pixels() -> None:
    step = torch.ones(1, 3, 8, 8)
    step[..., :4] = -1
    large = stretch(step, 64, 64)
    assert float(large.max()) == 1 and float(large.min()) == -1


def test_centre_square_cuts_the_longer_side_around_its_middle() -> None:
    frames = torch.zeros(1, 3, 10, 30)
    frames[..., 10:20] = 1
    torch.testing.assert_close(CENTRE_SQUARE(frames, 10), torch.ones(1, 3, 10, 10))
    torch.testing.assert_close(CENTRE_SQUARE(frames.mT, 10), torch.ones(1, 3, 10, 10))


def weights_by_hand(length: int, target: int, mode: str, antialias: bool) -> np.ndarray:
    """`[target, length]`: what each output pixel takes of each input pixel along one side."""
    scale = length / target
    wide = max(scale, 1.0) if antialias else 1.0  # antialias stretches the kernel over the pixels it skips

    def kernel(x: float) -> float:
        x = abs(x)
        if mode == "bilinear":
            return max(0.0, 1 - x)
        a = -0.5 if antialias else -0.75  # torch's cubic is Pillow's where it antialiases, OpenCV's where it doesn't
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    found = np.zeros((target, length))
    for row in range(target):
        centre = (row + 0.5) * scale - 0.5
        for at in range(int(centre - 2 * wide) - 2, int(centre + 2 * wide) + 3):
            inside = 0 <= at < length
            if inside or not antialias:  # beyond the border: left out with antialias, else the border's pixel
                found[row, min(max(at, 0), length - 1)] += kernel((at - centre) / wide)
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("rule", "sides", "cut"),
    [
        (VBENCH_SUBJECT, (28, 49), None),
        (VBENCH_BACKGROUND, (28, 49), (0, 10)),  # 10.5 rounds to the even 10
        (VBENCH_I2V_SUBJECT, (32, 56), (2, 14)),
        (VBENCH_I2V_BACKGROUND, (28, 28), None),
        (CENTRE_SQUARE, (28, 49), (0, 10)),
    ],
)
def test_resize_rules_against_weights_by_hand(
    rule: Resize, sides: tuple[int, int], cut: tuple[int, int] | None
) -> None:
    """36 x 63 bytes for a network of 28 pixels a side: an eighth of VBench's 224."""
    pixels = torch.randint(0, 256, (1, 3, 36, 63), generator=torch.Generator().manual_seed(0))
    down, across = (
        weights_by_hand(length, target, rule.mode, rule.antialias)
        for length, target in zip((36, 63), sides, strict=True)
    )
    expected = (down @ pixels[0].double().numpy() @ across.T).clip(0, 255)
    if rule is not CENTRE_SQUARE:
        expected = expected.round()
    if cut is not None:
        top, left = cut
        expected = expected[:, top : top + 28, left : left + 28]
    found = ((rule(pixels.float() / 127.5 - 1, 28) + 1) * 127.5)[0].numpy()
    assert found.shape == expected.shape
    off = np.abs(found - expected)
    assert off.max() <= 1.01 and (off > 1e-3).mean() < 1e-3  # a value on the half may round either way


def test_rules_say_what_they_do() -> None:
    assert VBENCH_SUBJECT.describe(224) == "shorter side to 224 by bilinear, no antialias, no crop"
    square = "then the central square of 224"
    assert VBENCH_BACKGROUND.describe(224) == f"shorter side to 224 by bicubic, no antialias, {square}"
    assert VBENCH_I2V_SUBJECT.describe(224) == f"shorter side to 256 by antialiased bicubic, {square}"
    assert VBENCH_I2V_BACKGROUND.describe(224) == "antialiased bicubic to 224 x 224, aspect not kept"


def test_normalise_by_hand() -> None:
    frames = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    result = normalise(frames, mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0))
    assert result.flatten().tolist() == [-1.0, 0.5, 0.5]


def test_chunks_are_small_ordered_and_without_gradient() -> None:
    sizes = []

    def run(x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x))
        assert x.dtype == torch.float32 and not torch.is_grad_enabled()
        return x + y

    x = torch.arange(7, dtype=torch.float64, requires_grad=True)
    result = in_chunks(run, x, x * 10, limit=3, device=torch.device("cpu"))
    assert sizes == [3, 3, 1]
    assert result.tolist() == [0, 11, 22, 33, 44, 55, 66]
    assert result.dtype == torch.float32 and not result.requires_grad


def test_a_limit_below_one_takes_one_at_a_time() -> None:
    sizes = []
    in_chunks(lambda x: sizes.append(len(x)) or x, torch.zeros(3), limit=0, device=torch.device("cpu"))
    assert sizes == [1, 1, 1]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(3, 8, 8), r"frames: expected \[N, 3, H, W\] with N >= 1, got \[3, 8, 8\]"),
        (torch.zeros(2, 1, 8, 8), r"got \[2, 1, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), r"N >= 1, got \[0, 3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"expected float pixels in \[-1, 1\], got torch.uint8"),
        (torch.tensor([0.0, 0.0, torch.nan]).view(3, 1, 1, 1).expand(3, 3, 4, 4), "NaN or infinity in item 2"),
    ],
)
def test_frames_that_no_extractor_takes(frames: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_frames(frames)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"videos: expected \[N, F, 3, H, W\]"),
        (torch.zeros(1, 9, 3, 8, 8), r"F >= 10, got \[1, 9, 3, 8, 8\]"),
        (torch.full((1, 10, 3, 8, 8), torch.inf), "NaN or infinity in item 0"),
    ],
)
def test_videos_that_no_extractor_takes(videos: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_videos(videos, least=10)
