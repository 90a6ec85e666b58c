from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.evaluation.extractors.optical_flow import DISFlow

pytest.importorskip("cv2", reason="needs opencv-python-headless")


@pytest.fixture(scope="module")
def flow() -> DISFlow:
    return DISFlow()


def texture(size: int) -> Tensor:
    noise = torch.rand(1, 1, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 2 - 1).expand(1, 3, size, size)


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("shift", [(1, 0), (0, 2), (-3, 1), (2, -3)])
def test_a_known_shift_is_found(flow: DISFlow, size: int, shift: tuple[int, int]) -> None:
    right, down = shift
    wide = texture(size + 16)
    first = wide[..., 8 : 8 + size, 8 : 8 + size]
    second = wide[..., 8 - down : 8 - down + size, 8 - right : 8 - right + size]  # the content goes right and down
    inside = flow(first, second)[0, :, 6:-6, 6:-6]
    assert float((inside[0] - right).abs().mean()) < 0.2
    assert float((inside[1] - down).abs().mean()) < 0.2


def test_nothing_moves_in_a_still_video(flow: DISFlow) -> None:
    frames = texture(64)
    assert float(flow(frames, frames).abs().max()) < 0.01


def test_pairs_do_not_touch_each_other(flow: DISFlow) -> None:
    wide = texture(80)
    first = torch.cat([wide[..., 8:72, 8:72]] * 3)
    second = torch.cat([wide[..., 8:72, 8 - right : 72 - right] for right in (0, 2, 4)])
    together = flow(first, second)
    assert together.shape == (3, 2, 64, 64) and together.dtype == torch.float32
    assert torch.equal(together, flow(first, second))
    assert torch.equal(together.flip(0), flow(first.flip(0), second.flip(0)))
    torch.testing.assert_close(together[:, 0].mean(dim=(1, 2)), torch.tensor([0.0, 2.0, 4.0]), atol=0.2, rtol=0)


def test_it_says_that_it_is_a_proxy(flow: DISFlow) -> None:
    assert (flow.about.name, flow.about.dimension, flow.about.stands_in_for) == ("dis", 2, "RAFT")
    assert "OpenCV" in flow.about.weights


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((1, 3, 32, 32), (2, 3, 32, 32), r"one shape, got \[1, 3, 32, 32\] and \[2, 3, 32, 32\]"),
        ((1, 3, 32, 8), (1, 3, 32, 8), r"sides of at least 16 pixels, got \[1, 3, 32, 8\]"),
        ((1, 3, 32, 32), (3, 32, 32), r"second: expected \[N, 3, H, W\]"),
    ],
)
def test_pairs_that_have_no_flow(flow: DISFlow, first: tuple[int, ...], second: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow(torch.zeros(first), torch.zeros(second))
