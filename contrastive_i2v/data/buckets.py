"""Buckets: sizes and lengths of the windows of one training, so that less of each clip is cropped or left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from contrastive_i2v.system import Size

STEPS = 8
"""Automatic sizes are this many steps along the side of the square of their area."""
TOLERANCE = 0.02
"""Of buckets that keep within this share as much of a clip, the largest is its own."""


class Bucket(NamedTuple):
    """What the examples of a batch have in common."""

    height: int
    width: int
    frames: int
    """Latent frames of an example: a window's `frames`."""

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {self.frames} frames"


def aspect_ratio_sizes(size: Size, largest: float, multiple: int) -> list[Size]:
    """Sizes of at most the area of `size` whose aspect ratios are at most `largest`, wide and tall; rising heights.

    Sides are multiples of s, the multiple of `multiple` that is nearest to an eighth of sqrt(area): h = s, 2 s, ... and
    w = s floor(area / (h s)), as far as max(h, w) / min(h, w) <= largest; each with its transpose.

    Source: the buckets of NovelAI ("Improvements on Stable Diffusion", 2022), with a step that grows with the size.
    """
    area = math.prod(size)
    step = multiple * max(1, round(math.sqrt(area) / STEPS / multiple))
    found = set[Size]()
    for height in range(step, math.isqrt(area) + 1, step):
        width = area // (height * step) * step
        if width <= largest * height:
            found |= {(height, width), (width, height)}
    return sorted(found)


def nearest_bucket(height: int, width: int, sizes: Sequence[Size]) -> int:
    """Which of `sizes` suits frames of `height` by `width` pixels.

    The one with the largest k min(1, 1 / r), where k is the share of the frame that `resize_frames` doesn't crop away
    and r = max(h / height, w / width) how much it enlarges the rest: what is enlarged has 1 / r pixels of its own along
    each side. Of those within 2 % the largest, then the first.
    """

    def kept(size: Size) -> float:
        vertical, horizontal = size[0] / height, size[1] / width
        ratio = max(vertical, horizontal)
        return min(vertical, horizontal) / ratio * min(1.0, 1 / ratio)

    best = max(map(kept, sizes)) - TOLERANCE
    near = [number for number, size in enumerate(sizes) if kept(size) >= best]
    return max(near, key=lambda number: math.prod(sizes[number]))


def bucket_rows(buckets: Sequence[Bucket], pixels: int, *, least: int) -> list[int]:
    """Rows of a batch of each bucket: as many as `pixels` of all frames hold, and no fewer than `least`."""
    return [max(least, pixels // math.prod(bucket)) for bucket in buckets]
