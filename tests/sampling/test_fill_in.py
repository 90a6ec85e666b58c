"""Frames between keyframes: windows, where they meet, and what comes out at the ends; with a made-up system."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import Toy

from contrastive_i2v.errors import InputError
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import fill_in
from contrastive_i2v.system import Window

PLAIN = Sampler(steps=1, guidance_scale=1.0, image_guidance_scale=1.0)


def between(count: int, gap: int, **changes: Any) -> Toy:
    """A toy whose windows hold `count` keyframes, `gap` frames apart."""
    given = tuple(gap * (k + 1) for k in range(count))
    return Toy(Window(gap * (count + 1) + 1, given, regenerates=changes.pop("regenerates", True)))


class Ramp(nn.Module):
    """Frame t of a window becomes keyframe 0 plus t / 100, whatever the noise: one step from there is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, noisy: Tensor, timesteps: Tensor, given: Tensor, prompt_embeds: Tensor) -> Tensor:
        times = torch.arange(noisy.shape[1], dtype=noisy.dtype).view(1, -1, 1, 1, 1)
        return (given[:, :1] + times / 100).expand_as(noisy).clone()


def ramp(count: int, gap: int) -> Toy:
    """A toy that predicts the sample itself, so a single step gives `Ramp`'s frames."""
    from diffusers import DDIMScheduler

    system = between(count, gap)
    system.network = Ramp()  # type: ignore[assignment]
    system.scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False, set_alpha_to_one=True)
    return system


def keyframes(total: int, size: int = 2) -> Tensor:
    return torch.arange(float(total)).view(1, -1, 1, 1, 1).repeat(size, 1, 3, 2, 2) * 10


def fill(system: Toy, given: Tensor, **options: Any) -> Tensor:
    text = system.encode_text(["a ball"] * len(given))
    return fill_in(system, given, text, **{"seeds": list(range(len(given))), "sampler": PLAIN, **options})


@pytest.mark.parametrize(("total", "frames"), [(8, 37), (16, 69), (9, 41), (20, 85), (24, 101)])
def test_so_many_keyframes_become_so_many_frames(total: int, frames: int) -> None:
    """gap (K + 1) + 1: 8 keyframes 4 apart become 37 frames, 16 become 69."""
    video = fill(ramp(8, 4), keyframes(total))
    assert video.shape == (2, frames, 3, 2, 2) and video.dtype == torch.float32


@pytest.mark.parametrize(("total", "starts"), [(8, [0]), (16, [0, 8]), (20, [0, 8, 12]), (9, [0, 1]), (24, [0, 8, 16])])
def test_each_window_is_given_the_next_keyframes(total: int, starts: list[int]) -> None:
    system, given = between(8, 4), keyframes(total)
    done: list[tuple[int, int]] = []
    fill(system, given, callback=lambda frames, latents: done.append((frames, latents.shape[1])))
    assert [int(told["given"][0, 0, 0, 0, 0]) for told in system.told] == [10 * start for start in starts]
    for told, start in zip(system.told, starts, strict=True):
        assert torch.equal(told["given"], given[:, start : start + 8])
    assert done == [(4 * start + 37, 37) for start in starts]


def test_two_windows_meet_between_the_keyframes() -> None:
    """16 keyframes: windows [0, 37) and [32, 69); from keyframe 7 at frame 32 to keyframe 8 at frame 36 the result goes
    from one to the other, and it is each window's own before and after, to the bit."""
    video = fill(ramp(8, 4), keyframes(16))[0, :, 0, 0, 0].double()
    first = [0 + t / 100 for t in range(37)]
    second = [80 + t / 100 for t in range(37)]
    expected = first[:32] + [
        (1 - u) * before + u * after
        for u, before, after in zip((0, 0.25, 0.5, 0.75, 1), first[32:], second[:5], strict=True)
    ]
    expected += second[5:]
    assert len(expected) == 69
    torch.testing.assert_close(video, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


def test_windows_are_their_own_to_the_bit_at_the_ends_of_the_crossfade() -> None:
    """With noise, guidance and several steps: alone, a window gives the frames that it gives among others."""
    system, given = between(8, 4), torch.randn(2, 16, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    shown: list[Tensor] = []
    video = fill(system, given, sampler=None, callback=lambda frames, latents: shown.append(latents))
    alone = fill(system, given[:, :8], sampler=None)
    assert torch.equal(shown[0], alone) and torch.equal(shown[1], video[:, 32:])
    assert torch.equal(video[:, :33], alone[:, :33])
    assert all(not torch.allclose(video[:, frame], alone[:, frame]) for frame in range(33, 37))
    other = given.clone()
    other[:, :8] = 5.0  # another first window, the same second one
    changed = fill(system, other, sampler=None)
    assert torch.equal(changed[:, 36:], video[:, 36:])
    assert all(not torch.allclose(changed[:, frame], video[:, frame]) for frame in range(36))


def test_a_sample_is_the_same_in_any_batch_and_windows_have_noise_of_their_own() -> None:
    system = between(3, 2)
    given = keyframes(6)
    both = fill(system, given, seeds=[4, 5], sampler=None)
    torch.testing.assert_close(fill(system, given[1:], seeds=[5], sampler=None), both[1:])
    assert torch.equal(fill(system, given, seeds=[4, 5], sampler=None), both)
    assert not torch.allclose(fill(system, given, seeds=[6, 5], sampler=None)[0], both[0])


@pytest.mark.parametrize(
    ("window", "says"),
    [
        (Window(4), r"the windows of toy give frames \(0,\) of 4; expected keyframes evenly apart"),
        (Window(3, given=()), r"give frames \(\) of 3; expected keyframes evenly apart"),
        (Window(9, (2, 4, 7), regenerates=True), r"\(2, 4, 7\) of 9; expected keyframes evenly apart"),
        (Window(10, (2, 4, 6), regenerates=True), r"\(2, 4, 6\) of 10; expected keyframes evenly apart"),
        (
            Window(9, (2, 4, 6)),
            r"\(2, 4, 6\) of 9; expected keyframes evenly apart, in windows that are generated whole",
        ),
    ],
)
def test_other_windows_are_refused(window: Window, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        fill(Toy(window), keyframes(8))
    assert "\n" not in str(refused.value)


def test_too_few_keyframes_are_refused() -> None:
    with pytest.raises(InputError, match="keyframes: expected at least 8, those of a window, got 7"):
        fill(between(8, 4), keyframes(7))
    with pytest.raises(InputError, match=r"given has shape \(2, 3, 2, 2\); expected \[B, K, C, h, w\]"):
        fill(between(8, 4), keyframes(8)[:, 0])
