"""Valid frames by hand-computed cases; the windows' distribution against the rule drawn by rejection."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from contrastive_i2v.data.frames import (
    FramesConfig,
    SampledWindow,
    clip_rng,
    frames_after_source,
    sample_windows,
    skip_reason,
    valid_frames,
)
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoInfo
from contrastive_i2v.errors import InputError
from contrastive_i2v.system import Window

PAIR = Window(2)


def _info(frames: int, fps: float) -> VideoInfo:
    return VideoInfo(frames, fps, 48, 64)


def _clip(start: float | None = None, end: float | None = None) -> Clip:
    return Clip(Path("a.mp4"), "a dog", start, end)


def sample_pairs(valid: Sequence[int], config: FramesConfig, rng: random.Random) -> list[tuple[int, ...]]:
    """(source, target) of windows of one given frame and one generated."""
    return [window.frames for window in sample_windows(valid, PAIR, config, rng)]


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
    assert valid_frames(_info(frames, fps), _clip(), FramesConfig(frame_rate=rate)) == expected


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
    assert valid_frames(_info(25, 25.0), _clip(start, end), FramesConfig()) == expected


@pytest.mark.parametrize("fps", [3.0, 7.3, 23.976, 25.0, 29.97, 59.94, 120.0])
def test_valid_frames_are_evenly_spaced_and_inside(fps: float) -> None:
    valid = valid_frames(_info(301, fps), _clip(), FramesConfig())
    steps = np.diff(valid)
    step = max(fps / 5, 1)
    assert valid[0] == 0 and 301 - step - 1 <= valid[-1] < 301
    assert set(steps) <= {math.floor(step), math.ceil(step)} and steps.min() >= 1


def test_skip_reasons() -> None:
    config = FramesConfig(max_seconds=30)
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
    pairs = sample_pairs(valid, FramesConfig(windows_per_clip=500), random.Random(0))
    assert all(s in valid and t in valid and s < t for s, t in pairs)
    assert len(set(pairs)) == len(pairs)
    assert {s for s, _ in pairs} == set(valid[:-1]) and {t for _, t in pairs} == set(valid[1:])


def test_zero_offset_means_the_next_valid_frame() -> None:
    pairs = sample_pairs([0, 5, 10, 15], FramesConfig(offset_std=0, windows_per_clip=60), random.Random(0))
    assert sorted(pairs) == [(0, 5), (5, 10), (10, 15)]


def test_two_valid_frames_give_one_pair_and_fewer_none() -> None:
    assert sample_pairs([4, 9], FramesConfig(windows_per_clip=5), random.Random(1)) == [(4, 9)]
    with pytest.raises(ValueError, match="at least 2 frames"):
        sample_pairs([4], FramesConfig(), random.Random(1))


@pytest.mark.parametrize("std", [10.0, 1.5, 0.3])
def test_distribution_is_the_rule_drawn_by_rejection(std: float) -> None:
    """Sources uniform; per source, offsets as max(1, round(|N|)) drawn again until inside the clip."""
    count, draws = 12, 40_000
    config = FramesConfig(offset_std=std, windows_per_clip=1)
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


@pytest.mark.parametrize(("length", "most"), [(4, 5), (2, 3), (16, 5)])
def test_offsets_up_to_a_most_are_equally_likely(length: int, most: int) -> None:
    """Sources uniform over those with room; per source, offsets uniform over 1 to `most`, as far as the clip goes."""
    count, draws = 40, 20_000
    config = FramesConfig(max_offset=most, offset_std=50.0, windows_per_clip=1)
    rng = random.Random(4)
    ours: Counter[tuple[int, int]] = Counter()
    for _ in range(draws):
        (window,) = sample_windows(range(count), Window(length), config, rng)
        assert window.frames == tuple(window.frames[0] + window.offset * step for step in range(length))
        assert window.frames[-1] < count and all(window.present)
        ours[window.frames[0], window.offset] += 1
    sources = count - length + 1
    for source in range(sources):
        room = min(most, (count - 1 - source) // (length - 1))
        assert {offset for start, offset in ours if start == source} <= set(range(1, room + 1))
        for offset in range(1, room + 1):
            expected = draws / sources / room
            assert abs(ours[source, offset] - expected) < 5.5 * math.sqrt(expected)
    assert ours.total() == draws


def test_a_clip_has_its_own_generator() -> None:
    def draw(clip: Clip, seed: int = 0) -> list[tuple[int, ...]]:
        return sample_pairs(range(100), FramesConfig(windows_per_clip=4), clip_rng(clip, seed))

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
    assert draw(clip)[:2] == sample_pairs(range(100), FramesConfig(windows_per_clip=2), clip_rng(clip, 0))


def test_the_draw_is_the_same_on_every_platform_and_version() -> None:
    pairs = sample_pairs(range(0, 500, 5), FramesConfig(windows_per_clip=3), clip_rng(_clip(), 0))
    assert pairs == PINNED


PINNED = [(165, 195), (15, 40), (255, 295)]


@pytest.mark.parametrize(
    ("valid", "std", "seed", "expected"),
    [
        (range(0, 250, 5), 10.0, 0, [(120, 175), (130, 135), (160, 190), (95, 200), (110, 150), (65, 100)]),
        (range(12), 1.5, "a clip", [(2, 3), (4, 7), (7, 9), (3, 4), (8, 9), (1, 3)]),
        (range(7), 0.0, 1, [(1, 2), (0, 1), (3, 4)]),
    ],
)
def test_pairs_are_drawn_as_before_there_were_windows(
    valid: Sequence[int], std: float, seed: int | str, expected: list[tuple[int, int]]
) -> None:
    """So that runs begun then go on with the same data."""
    count = 5 if std == 0 else 6
    config = FramesConfig(offset_std=std, windows_per_clip=count)
    windows = sample_windows(valid, PAIR, config, random.Random(seed))
    assert [window.frames for window in windows] == expected
    places = list(valid)
    for window in windows:
        source, target = (places.index(frame) for frame in window.frames)
        assert window.present == (True, True) and window.offset == target - source


def test_past_frames_lie_as_far_apart_as_the_target_and_missing_ones_are_marked() -> None:
    """Three past frames and the anchor: [first frame, three given, one generated], valid frames 10, 15, .."""
    valid = [10 + 5 * i for i in range(30)]
    window = Window(4, given=(0, 1, 2), anchor=True)
    drawn = sample_windows(valid, window, FramesConfig(offset_std=4, windows_per_clip=400), random.Random(0))
    assert len(drawn) > 100 and {w.offset for w in drawn} >= {1, 2, 3, 4, 5}
    missing = set()
    for frames, present, offset, _ in drawn:
        anchor, *rest = frames
        assert anchor == 10 and len(rest) == 4 and present[0] and len(present) == 5
        target, source = valid.index(rest[3]), valid.index(rest[2])
        assert target - source == offset and present[3:] == (True, True)
        places = [source - 2 * offset, source - offset, source, target]
        earliest = min(place for place in places if place >= 0)  # of the window, which needn't be the clip's first
        assert rest == [valid[place if place >= 0 else earliest] for place in places]
        assert present[1:] == tuple(place >= 0 for place in places)
        missing.add(4 - sum(present[1:]))
    assert missing == {0, 1, 2}
    assert any(w.frames[1] != 10 for w in drawn if not all(w.present))  # the earliest isn't the clip's first
    assert {w.frames[3] for w in drawn} == set(valid[:-1])  # every source that has a frame after it


def test_the_frame_ahead_is_as_far_away_and_missing_after_the_clips_end() -> None:
    valid = [10 + 5 * i for i in range(12)]
    config = FramesConfig(offsets=(1, 2, 4), windows_per_clip=400)
    window = Window(2, anchor=True, ahead=True)
    drawn = sample_windows(valid, window, config, random.Random(0), following=1)
    assert window.frames == 4 and window.rolls and {w.offset for w in drawn} == {1, 2, 4}
    for w in drawn:
        anchor, source, target, ahead = w.frames
        place = valid.index(target)
        assert anchor == 10 and place - valid.index(source) == w.offset
        assert w.present == (True, True, True, place + w.offset < 12)
        assert ahead == valid[min(place + w.offset, 11)]
        for later in w.following:
            assert later.frames[1] == target and later.offset == w.offset
        assert len(w.following) == (place + w.offset < 12)  # the truth of the next window is there, or not
    assert {w.frames[1:3] for w in drawn} == {(a, b) for a in valid for b in valid if (b - a) // 5 in (1, 2, 4)}


def test_offsets_are_each_as_likely_and_bad_ones_are_refused() -> None:
    valid = range(0, 4000, 5)
    drawn = [
        sample_windows(valid, PAIR, FramesConfig(offsets=(1, 2, 4), windows_per_clip=1), random.Random(seed))[0].offset
        for seed in range(3000)
    ]
    for offset in (1, 2, 4):
        assert abs(drawn.count(offset) / 3000 - 1 / 3) < 0.03
    for offsets in ((2, 4), (1, 1), (1, 4, 2)):
        with pytest.raises(InputError, match="offsets: expected rising numbers, the first of them 1"):
            FramesConfig(offsets=offsets)
    with pytest.raises(InputError, match="offsets, max_offset: expected one of them"):
        FramesConfig(offsets=(1, 2), max_offset=2)


def test_more_past_frames_leave_the_sources_and_targets_as_they_are() -> None:
    config, valid = FramesConfig(windows_per_clip=20), range(0, 200, 5)
    pairs = sample_windows(valid, PAIR, config, random.Random(5))
    windows = sample_windows(valid, Window(6, given=range(5), anchor=True), config, random.Random(5))
    assert [w.frames[-2:] for w in windows] == [w.frames for w in pairs]
    assert [w.offset for w in windows] == [w.offset for w in pairs]


@pytest.mark.parametrize(
    "window",
    [
        Window(16, given=(0,)),
        Window(37, given=tuple(range(4, 33, 4))),  # in between keyframes
        Window(37, given=(0, 4, 36)),
    ],
    ids=["one given", "none given first", "given on both sides"],
)
def test_long_windows_lie_inside_the_clip(window: Window) -> None:
    assert frames_after_source(window) == window.length - 1
    valid = [3 * i for i in range(3 * window.length)]
    config = FramesConfig(offset_std=2, windows_per_clip=600)
    drawn = sample_windows(valid, window, config, random.Random(2))
    assert all(len(w.frames) == window.length and w.present == (True,) * window.length for w in drawn)
    for w in drawn:
        first = valid.index(w.frames[0])
        assert list(w.frames) == valid[first :: w.offset][: window.length]
    longest = (len(valid) - 1) // (window.length - 1)
    assert {w.offset for w in drawn} == set(range(1, longest + 1))
    firsts = {w.frames[0] for w in drawn}
    assert min(firsts) == 0 and max(firsts) == valid[-window.length]  # the last start that has room
    tight = sample_windows(valid[: window.length], window, config, random.Random(2))
    assert tight == [SampledWindow(tuple(valid[: window.length]), (True,) * window.length, 1)]
    with pytest.raises(ValueError, match=f"expected at least {window.length} frames"):
        sample_windows(valid[: window.length - 1], window, config, random.Random(2))


def test_given_frames_in_front_need_no_room_in_the_clip() -> None:
    """Two given, three generated: what comes before the source may be missing, what comes after may not."""
    window = Window(5, given=(0, 1))
    assert frames_after_source(window) == 3
    drawn = sample_windows(range(4), window, FramesConfig(windows_per_clip=9), random.Random(0))
    assert drawn == [SampledWindow((0, 0, 1, 2, 3), (False, True, True, True, True), 1)]


def test_offsets_of_long_windows_follow_the_rule() -> None:
    """Per source, offsets as max(1, round(|N|)) drawn again until the window ends inside the clip."""
    window, count, draws, std = Window(4), 16, 40_000, 2.0
    config, rng = FramesConfig(offset_std=std, windows_per_clip=1), random.Random(4)
    ours = Counter(sample_windows(range(count), window, config, rng)[0] for _ in range(draws))
    found = Counter({(w.frames[0], w.offset): n for w, n in ours.items()})
    offsets = np.maximum(1, np.floor(np.abs(np.random.default_rng(1).normal(0, std, 2_000_000)) + 0.5))
    for source in range(count - 3):
        room = (count - 1 - source) // 3
        inside = offsets[offsets <= room]
        for offset in range(1, room + 1):
            expected = draws / (count - 3) * np.mean(inside == offset)
            assert abs(found[source, offset] - expected) < 5 * math.sqrt(expected + 1) + 0.01 * expected


@pytest.mark.parametrize("given", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("anchor", [False, True])
def test_a_codec_that_compresses_time_gets_every_frame(anchor: bool, given: tuple[int, ...]) -> None:
    """None is missing, also where several latent frames are given: each holds frames, and a repeated one holds none."""
    window = Window(5, given=given, anchor=anchor)
    assert frames_after_source(window, 4) == 16
    valid = list(range(7, 107))
    config = FramesConfig(offset_std=2, windows_per_clip=50)
    drawn = sample_windows(valid, window, config, random.Random(0), temporal_downscale=4)
    assert len({w.offset for w in drawn}) > 2
    for w in drawn:
        frames = w.frames[anchor:]
        assert frames == tuple(range(frames[0], frames[0] + 16 * w.offset + 1, w.offset))  # (5 - 1) * 4 + 1 of them
        assert w.present == (True,) * (anchor + 5)  # one a latent frame
        assert not anchor or w.frames[0] == 7
    with pytest.raises(ValueError, match="expected at least 17 frames"):
        sample_windows(valid[:16], window, config, random.Random(0), temporal_downscale=4)


def test_a_clip_too_short_for_a_window_is_skipped() -> None:
    config = FramesConfig()
    assert skip_reason(_info(80, 25.0), _clip(), config, least=16) is None  # 16 valid frames
    reason = skip_reason(_info(75, 25.0), _clip(), config, least=16)
    assert reason == "too short: 3.00 s hold fewer than 16 frames at 5 a second"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frame_rate", 0),
        ("frame_rate", math.nan),
        ("offset_std", -1.0),
        ("offset_std", math.inf),
        ("max_seconds", 0),
        ("windows_per_clip", 0),
    ],
)
def test_config_refuses(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name}: expected .*, got {value}"):
        FramesConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "window", [PAIR, Window(4, given=(0, 1, 2), anchor=True), Window(4), Window(4, regenerates=True)]
)
def test_windows_that_follow_begin_where_the_one_before_ends(window: Window) -> None:
    """Their given frames are the last ones before their new ones, in the clip, at the same distance."""
    valid = range(100, 140)
    config = FramesConfig(offset_std=2.0, windows_per_clip=30)
    alone = sample_windows(valid, window, config, random.Random(0))
    drawn = sample_windows(valid, window, config, random.Random(0), following=3)
    assert [one._replace(following=()) for one in drawn] == alone
    anchors, new = int(window.anchor), window.length - window.past
    for first in drawn:
        chain = [first, *first.following]
        last = first.frames[-1]
        assert len(first.following) == min(3, (139 - last) // (new * first.offset))
        for before, after in zip(chain, chain[1:], strict=False):
            assert after.offset == first.offset and after.following == () and after.frames[:anchors] == (100,) * anchors
            frames, ahead = before.frames[anchors:], after.frames[anchors:]
            assert ahead[window.past :] == tuple(frames[-1] + first.offset * (1 + step) for step in range(new))
            for place in range(window.past):
                if after.present[anchors + place]:
                    assert ahead[place] == ahead[window.past] - first.offset * (window.past - place)
