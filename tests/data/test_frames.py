"""Valid frames by hand-computed cases; the pairs' distribution against the rule drawn by rejection."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from contrastive_i2v.data.frames import FramePairConfig, clip_rng, sample_pairs, skip_reason, valid_frames
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoInfo
from contrastive_i2v.errors import InputError


def _info(frames: int, fps: float) -> VideoInfo:
    return VideoInfo(frames, fps, 48, 64)


def _clip(start: float | None = None, end: float | None = None) -> Clip:
    return Clip(Path("a.mp4"), "a dog", start, end)


@pytest.mark.parametrize(
    ("frames", "fps", "rate", "expected"),
    [
        (26, 25.0, 5.0, [0, 5, 10, 15, 20, 25]),
        (25, 25.0, 5.0, [0, 5, 10, 15, 20]),
        (7, 10.0, 5.0, [0, 2, 4, 6]),
        (20, 30000 / 1001, 5.0, [0, 6, 12, 18]),  # step 5.994
        (13, 24.0, 5.0, [0, 5, 10]),  # step 4.8: 0, 4.8, 9.6, 14.4
        (5, 3.0, 5.0, [0, 1, 2, 3, 4]),  # a slow video: every frame, none twice
        (4, 1.0, 30.0, [0, 1, 2, 3]),
    ],
)
def test_valid_frames(frames: int, fps: float, rate: float, expected: list[int]) -> None:
    assert valid_frames(_info(frames, fps), _clip(), FramePairConfig(frame_rate=rate)) == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.28, None, [7, 12, 17, 22]),
        (0.27, None, [7, 12, 17, 22]),  # frame 6 is shown at 0.24 s, before the clip
        (None, 0.4, [0, 5]),  # frame 10 is shown at 0.4 s, after it
        (None, 0.41, [0, 5, 10]),
        (0.2, 0.8, [5, 10, 15]),
        (0.5, 99.0, [13, 18, 23]),
    ],
)
def test_valid_frames_of_a_part(start: float | None, end: float | None, expected: list[int]) -> None:
    assert valid_frames(_info(25, 25.0), _clip(start, end), FramePairConfig()) == expected


@pytest.mark.parametrize("fps", [3.0, 7.3, 23.976, 25.0, 29.97, 59.94, 120.0])
def test_valid_frames_are_evenly_spaced_and_inside(fps: float) -> None:
    valid = valid_frames(_info(301, fps), _clip(), FramePairConfig())
    steps = np.diff(valid)
    step = max(fps / 5, 1)
    assert valid[0] == 0 and 301 - step - 1 <= valid[-1] < 301
    assert set(steps) <= {math.floor(step), math.ceil(step)} and steps.min() >= 1


def test_skip_reasons() -> None:
    config = FramePairConfig(max_seconds=30)
    assert skip_reason(_info(750, 25.0), _clip(), config) is None  # exactly 30 s
    assert skip_reason(_info(751, 25.0), _clip(), config) == "too long: 30.0 s, at most 30 s (max_seconds)"
    assert skip_reason(_info(5000, 25.0), _clip(10, 20), config) is None
    assert skip_reason(_info(6, 25.0), _clip(), config) is None
    assert "fewer than two frames at 5 a second" in str(skip_reason(_info(5, 25.0), _clip(), config))
    assert "no frame from 2 s to 1 s; the video lasts 1 s" in str(skip_reason(_info(25, 25.0), _clip(2), config))
    assert "no frame from 0.41 s to 0.43 s" in str(skip_reason(_info(25, 25.0), _clip(0.41, 0.43), config))
    assert "0 a second" in str(skip_reason(_info(25, 0.0), _clip(), config))
    assert "0 frames" in str(skip_reason(_info(0, 25.0), _clip(), config))


def test_the_target_follows_inside_the_clip() -> None:
    valid = list(range(3, 100, 5))
    pairs = sample_pairs(valid, FramePairConfig(pairs_per_clip=500), random.Random(0))
    assert all(s in valid and t in valid and s < t for s, t in pairs)
    assert len(set(pairs)) == len(pairs)
    assert {s for s, _ in pairs} == set(valid[:-1]) and {t for _, t in pairs} == set(valid[1:])


def test_zero_offset_means_the_next_valid_frame() -> None:
    pairs = sample_pairs([0, 5, 10, 15], FramePairConfig(offset_std=0, pairs_per_clip=60), random.Random(0))
    assert sorted(pairs) == [(0, 5), (5, 10), (10, 15)]


def test_two_valid_frames_give_one_pair_and_fewer_none() -> None:
    assert sample_pairs([4, 9], FramePairConfig(pairs_per_clip=5), random.Random(1)) == [(4, 9)]
    with pytest.raises(ValueError, match="at least two frames"):
        sample_pairs([4], FramePairConfig(), random.Random(1))


@pytest.mark.parametrize("std", [10.0, 1.5, 0.3])
def test_distribution_is_the_rule_drawn_by_rejection(std: float) -> None:
    """Sources uniform; per source, offsets as max(1, round(|N|)) drawn again until inside the clip."""
    count, draws = 12, 40_000
    config = FramePairConfig(offset_std=std, pairs_per_clip=1)
    rng = random.Random(3)
    ours = Counter(sample_pairs(range(count), config, rng)[0] for _ in range(draws))

    reference = np.random.default_rng(0)
    offsets = np.maximum(1, np.floor(np.abs(reference.normal(0, std, 2_000_000)) + 0.5))
    for source in range(count - 1):
        inside = offsets[offsets <= count - 1 - source]
        for target in range(source + 1, count):
            expected = draws / (count - 1) * np.mean(inside == target - source)
            # five standard errors of the count, and of the reference's own estimate
            assert abs(ours[source, target] - expected) < 5 * math.sqrt(expected + 1) + 0.01 * expected


def test_a_clip_has_its_own_generator() -> None:
    def draw(clip: Clip, seed: int = 0) -> list[tuple[int, int]]:
        return sample_pairs(range(100), FramePairConfig(pairs_per_clip=4), clip_rng(clip, seed))

    clip = Clip(Path("data/a.mp4"), "a dog", 1.0, 9.0)
    assert draw(clip) == draw(Clip(Path("/elsewhere/a.mp4"), "a dog", 1.0, 9.0))
    others = [
        Clip(Path("data/b.mp4"), "a dog", 1.0, 9.0),
        Clip(Path("data/a.mp4"), "a cat", 1.0, 9.0),
        Clip(Path("data/a.mp4"), "a dog", 2.0, 9.0),
        Clip(Path("data/a.mp4"), "a dog", 1.0, None),
    ]
    assert all(draw(clip) != draw(other) for other in others)
    assert draw(clip) != draw(clip, seed=1)
    assert draw(clip)[:2] == sample_pairs(range(100), FramePairConfig(pairs_per_clip=2), clip_rng(clip, 0))


def test_the_draw_is_the_same_on_every_platform_and_version() -> None:
    pairs = sample_pairs(range(0, 500, 5), FramePairConfig(pairs_per_clip=3), clip_rng(_clip(), 0))
    assert pairs == PINNED


PINNED = [(165, 195), (15, 40), (255, 295)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frame_rate", 0),
        ("frame_rate", math.nan),
        ("offset_std", -1.0),
        ("offset_std", math.inf),
        ("max_seconds", 0),
        ("pairs_per_clip", 0),
    ],
)
def test_config_refuses(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name}: expected .*, got {value}"):
        FramePairConfig(**{name: value})  # type: ignore[arg-type]
