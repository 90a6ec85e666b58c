"""Which frames of a clip make a training pair: valid frames at a fixed rate, a source, a target after it.

The rule is the original project's: every 5th frame of a 25 fps video is valid (so 5 a second, whatever the
video's rate); the source is uniform over the valid frames; the target follows it by |N(0, 10)| valid frames
(two seconds), at least one, inside the clip; clips over 30 s are left out.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoInfo
from contrastive_i2v.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FramePairConfig:
    """Which frames become (source, target) pairs."""

    frame_rate: float = 5.0
    """Valid frames a second. A slower video gives every frame it has."""
    offset_std: float = 10.0
    """The target follows the source by |N(0, offset_std)| valid frames, at least one; 0 = always the next."""
    max_seconds: float = 30.0
    """Longer clips are left out."""
    pairs_per_clip: int = 2
    """Pairs drawn from each clip; one drawn twice is kept once, so a very short clip may give fewer."""

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("frame_rate", 0 < self.frame_rate < math.inf, "a number of frames a second > 0"),
            ("offset_std", 0 <= self.offset_std < math.inf, "a number of valid frames >= 0"),
            ("max_seconds", self.max_seconds > 0, "seconds > 0"),
            ("pairs_per_clip", self.pairs_per_clip >= 1, "at least 1"),
        ):
            if not good:
                raise InputError(f"{name}: expected {expected}, got {getattr(self, name)}")


def valid_frames(info: VideoInfo, clip: Clip, config: FramePairConfig) -> list[int]:
    """Native frame indices, `config.frame_rate` a second from the clip's start on, each at most once.

    Frame i is shown at i / fps; the clip holds the frames shown in [start, end). Index k of the result is the
    frame nearest to first + k * fps / frame_rate.
    """
    first, stop = _bounds(info, clip)
    step = max(info.fps / config.frame_rate, 1.0)
    count = math.ceil((stop - first) / step)
    frames = (first + math.floor(k * step + 0.5) for k in range(count))
    return [frame for frame in frames if frame < stop]


def skip_reason(info: VideoInfo, clip: Clip, config: FramePairConfig) -> str | None:
    """Why a clip can't give pairs (its rate is unknown, it is too long, or too short), or None."""
    if not (info.frames > 0 and 0 < info.fps < math.inf):
        return f"its header says {info.frames} frames at {info.fps:g} a second"
    first, stop = _bounds(info, clip)
    seconds = (stop - first) / info.fps
    if first >= stop:
        end = info.seconds if clip.end is None else clip.end
        return f"no frame from {clip.start or 0:g} s to {end:g} s; the video lasts {info.seconds:g} s"
    if seconds > config.max_seconds:
        return f"too long: {seconds:.1f} s, at most {config.max_seconds:g} s (max_seconds)"
    if len(valid_frames(info, clip, config)) < 2:
        return f"too short: {seconds:.2f} s hold fewer than two frames at {config.frame_rate:g} a second"
    return None


def clip_rng(clip: Clip, seed: int) -> random.Random:
    """The clip's own generator: the same for the same seed, file name, caption and bounds, wherever its
    folder lies and whatever other clips there are."""
    return random.Random(json.dumps([seed, clip.path.name, clip.caption, clip.start, clip.end]))


def sample_pairs(valid: Sequence[int], config: FramePairConfig, rng: random.Random) -> list[tuple[int, int]]:
    """Draw `config.pairs_per_clip` pairs (source, target) of native frame indices, without repeats.

    The source is uniform over the valid frames that have a successor. The offset, in valid frames, is
    max(1, round(|N(0, offset_std)|)) conditioned on the target being inside the clip (what drawing again
    until it is would give), so no mass piles up on the last frame.

    Raises ValueError for fewer than two valid frames.
    """
    if len(valid) < 2:
        raise ValueError(f"valid: expected at least two frames, got {list(valid)}")
    cumulative = _offset_cdf(len(valid) - 1, config.offset_std)
    pairs: dict[tuple[int, int], None] = {}  # an ordered set
    for _ in range(config.pairs_per_clip):
        source = rng.randrange(len(valid) - 1)
        room = len(valid) - 1 - source
        offset = rng.choices(range(1, room + 1), cum_weights=cumulative[:room])[0]
        pairs[valid[source], valid[source + offset]] = None
    return list(pairs)


def _bounds(info: VideoInfo, clip: Clip) -> tuple[int, int]:
    """First native frame of the clip, and the one after its last."""

    def index(seconds: float) -> int:
        return math.ceil(round(seconds * info.fps, 6))  # 0.28 s * 25 fps is 7.000000000000001

    first = 0 if clip.start is None else index(clip.start)
    stop = info.frames if clip.end is None else min(info.frames, index(clip.end))
    return first, stop


def _offset_cdf(longest: int, std: float) -> list[float]:
    """P(offset <= k) for k = 1 .. longest: P(|N(0, std)| < k + 1/2) = erf((k + 1/2) / (std sqrt 2))."""
    if std == 0:
        return [1.0] * longest
    return [math.erf((k + 0.5) / (std * math.sqrt(2))) for k in range(1, longest + 1)]
