from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation.extractors.preparation import (
    centre_square,
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
    torch.testing.assert_close(centre_square(frames, 10), torch.ones(1, 3, 10, 10))
    torch.testing.assert_close(centre_square(frames.mT, 10), torch.ones(1, 3, 10, 10))


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
