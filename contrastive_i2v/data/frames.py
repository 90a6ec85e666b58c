"""Which frames of a clip a window holds: valid frames at a fixed rate, a source, and frames at one distance around it.

The rule is the original project's, stretched from pairs to windows: every 5th frame of a 25 fps video is valid (so 5 a
second, whatever the video's rate); the source is uniform over the valid frames; the target follows it by |N(0, 10)|
valid frames (two seconds), at least one, inside the clip; clips over 30 s are left out. In a window that distance lies
between all neighbours, and frames before the source may be missing.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoInfo, check_rate
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.system import Window


@dataclass(frozen=True, kw_only=True)
class FramesConfig:
    """Which frames of a clip become training windows."""

    frame_rate: float = 5.0
    """Valid frames a second. A slower video gives every frame it has."""
    offset_std: float = 10.0
    """A window's frames are |N(0, offset_std)| valid frames apart, at least one; 0 = always neighbours."""
    max_offset: int | None = None
    """None, or: a window's frames are 1 to this many valid frames apart, each as likely, whatever offset_std says."""
    offsets: tuple[int, ...] = ()
    """Or: a window's frames are one of these numbers of valid frames apart, each as likely; rising from 1."""
    max_seconds: float = 30.0
    """Longer clips are left out."""
    windows_per_clip: int = 2
    """Windows drawn from each clip; one drawn twice is kept once, so a very short clip may give fewer."""

    def __post_init__(self) -> None:
        check_fields(self, {"offset_std": 0, "max_offset": 1, "windows_per_clip": 1})
        check_rate("frame_rate", self.frame_rate)
        if self.offsets and (self.offsets[0] != 1 or list(self.offsets) != sorted(set(self.offsets))):
            raise InputError(f"offsets: expected rising numbers, the first of them 1, got {self.offsets}")
        if self.offsets and self.max_offset is not None:
            raise InputError("offsets, max_offset: expected one of them")
        if not self.max_seconds > 0:  # it may be infinite
            raise InputError(f"max_seconds: expected a number > 0, got {self.max_seconds}")


class SampledWindow(NamedTuple):
    """The frames of one training example, the anchor first and the frame ahead last where the window has them."""

    frames: tuple[int, ...]
    """Native frame indices; a missing frame repeats the window's earliest, the frame ahead the clip's last."""
    present: tuple[bool, ...]
    """One a latent frame; False where it would lie before the clip's start or after its end."""
    offset: int
    """Valid frames between neighbours."""
    following: tuple[SampledWindow, ...] = ()
    """The windows that a rollout from this one's given frames makes next."""


def valid_frames(info: VideoInfo, clip: Clip, config: FramesConfig) -> list[int]:
    """Native frame indices, `config.frame_rate` a second from the clip's start on, each at most once.

    Frame i is shown at i / fps; the clip holds the frames shown in [start, end). Index k of the result is the
    frame nearest to first + k * fps / frame_rate.
    """
    first, stop = _bounds(info, clip)
    step = max(info.fps / config.frame_rate, 1.0)
    count = math.ceil((stop - first) / step)
    frames = (first + math.floor(k * step + 0.5) for k in range(count))
    return [frame for frame in frames if frame < stop]


def skip_reason(info: VideoInfo, clip: Clip, config: FramesConfig, *, least: int = 2) -> str | None:
    """Why a clip can't be used (its rate is unknown, it is too long, or holds fewer than `least` valid frames), or
    None."""
    if not (info.frames > 0 and 0 < info.fps < math.inf):
        return f"its header says {info.frames} frames at {info.fps:g} a second"
    first, stop = _bounds(info, clip)
    seconds = (stop - first) / info.fps
    if first >= stop:
        end = info.seconds if clip.end is None else clip.end
        return f"no frame from {clip.start or 0:g} s to {end:g} s; the video lasts {info.seconds:g} s"
    if seconds > config.max_seconds:
        return f"too long: {seconds:.1f} s, at most {config.max_seconds:g} s (max_seconds)"
    if len(valid_frames(info, clip, config)) < least:
        count = {2: "two"}.get(least, str(least))
        return f"too short: {seconds:.2f} s hold fewer than {count} frames at {config.frame_rate:g} a second"
    return None


def clip_rng(clip: Clip, seed: int) -> random.Random:
    """The clip's own generator: the same for the same seed, file name, caption and bounds, wherever its
    folder lies and whatever other clips there are."""
    return random.Random(json.dumps([seed, clip.where.name, clip.caption, clip.start, clip.end]))


def frames_after_source(window: Window, temporal_downscale: int = 1) -> int:
    """How many frames of a window follow its source, the last of the given frames that come first (a window that gives
    none first, or whose latents each hold several frames: its first frame)."""
    before = max(window.past - 1, 0) if temporal_downscale == 1 else 0
    return (window.length - 1) * temporal_downscale - before


def sample_windows(
    valid: Sequence[int],
    window: Window,
    config: FramesConfig,
    rng: random.Random,
    *,
    temporal_downscale: int = 1,
    following: int = 0,
) -> list[SampledWindow]:
    """Draw `config.windows_per_clip` windows of native frame indices, without repeats.

    The source is uniform over the valid frames that have the window's later frames after them. The offset, in valid
    frames, is max(1, round(|N(0, offset_std)|)) conditioned on the window ending inside the clip (what drawing again
    until it does would give), so no mass piles up on the last frame. A given frame that would lie before the clip is
    missing: that is how a rollout from one still image begins.

    Args:
        valid: native indices, at least `frames_after_source(window) + 1` of them.
        temporal_downscale: of the codec: frames to a latent frame after the first.
        following: how many windows to name after each, as far as the clip has their frames. The draws are the same
            for any number. Needs an image codec, and windows that can follow each other.

    Raises:
        ValueError: too few valid frames.
    """
    after = frames_after_source(window, temporal_downscale)
    before = (window.length - 1) * temporal_downscale - after
    if len(valid) <= after:
        raise ValueError(f"valid: expected at least {after + 1} frames, got {list(valid)}")
    span = max(after, 1)  # a window of one frame has no distances
    cumulative = _offset_cdf((len(valid) - 1) // span, config)
    drawn: dict[SampledWindow, None] = {}  # an ordered set
    for _ in range(config.windows_per_clip):
        source = rng.randrange(len(valid) - after)
        room = (len(valid) - 1 - source) // span
        offset = rng.choices(range(1, room + 1), cum_weights=cumulative[:room])[0] if after else 1
        places = [source + step * offset for step in range(-before, after + 1 + window.ahead)]
        stride = (window.length - window.past) * offset
        later = [[place + stride * number for place in places] for number in range(1, following + 1)]
        first, *others = (
            _window(valid, one, window, offset, temporal_downscale)
            for one in [places, *later]
            if one[-1 - window.ahead] < len(valid)
        )
        drawn[first._replace(following=tuple(others))] = None
    return list(drawn)


def _window(
    valid: Sequence[int], places: Sequence[int], window: Window, offset: int, temporal_downscale: int
) -> SampledWindow:
    """The window of frames at these places among the valid ones."""
    earliest, last = min(place for place in places if place >= 0), len(valid) - 1
    frames = tuple(valid[min(place, last) if place >= 0 else earliest] for place in places)
    anchor = (valid[0],) * window.anchor
    present = (True,) * window.anchor + tuple(0 <= place <= last for place in places[::temporal_downscale])
    return SampledWindow(anchor + frames, present, offset)


def _bounds(info: VideoInfo, clip: Clip) -> tuple[int, int]:
    """First native frame of the clip, and the one after its last."""

    def index(seconds: float) -> int:
        return math.ceil(round(seconds * info.fps, 6))  # 0.28 s * 25 fps is 7.000000000000001

    first = 0 if clip.start is None else index(clip.start)
    stop = info.frames if clip.end is None else min(info.frames, index(clip.end))
    return first, stop


def _offset_cdf(longest: int, config: FramesConfig) -> list[float]:
    """P(offset <= k) for k = 1 .. longest: P(|N(0, std)| < k + 1/2) = erf((k + 1/2) / (std sqrt 2)), or uniform."""
    if config.offsets:
        return [sum(offset <= k for offset in config.offsets) / len(config.offsets) for k in range(1, longest + 1)]
    if config.max_offset is not None:
        return [min(k / config.max_offset, 1.0) for k in range(1, longest + 1)]
    std = config.offset_std
    if std == 0:
        return [1.0] * longest
    return [math.erf((k + 0.5) / (std * math.sqrt(2))) for k in range(1, longest + 1)]
