"""What a caption of the generated clips says, and how many futures samples choose where it leaves the future open."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import Tensor

from contrastive_i2v.data.shapes import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SPEEDS

_CAPTION = re.compile(
    rf"an? (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)}) moves"
    rf"(?: (?P<direction>{'|'.join(DIRECTIONS)}))?(?: (?P<speed>{'|'.join(SPEEDS)}))?"
    rf" over (?P<scrolls>moving )?(?P<background>{'|'.join(BACKGROUNDS)})(?P<occluded> behind a pillar)?"
)


@dataclass(frozen=True, kw_only=True)
class ShapesCaption:
    """The scene that a caption tells of."""

    shape: str
    colour: str
    direction: str | None
    """None where it is left open."""
    speed: str | None
    background: str
    scrolls: bool
    occluded: bool

    @property
    def is_plain(self) -> bool:
        """A plain wall, which never scrolls, and no pillar: nothing but the shape can be seen."""
        return self.background == BACKGROUNDS[0] and not self.occluded

    @property
    def is_open(self) -> bool:
        """It says neither direction nor speed."""
        return self.direction is None and self.speed is None


def parse_caption(text: str) -> ShapesCaption | None:
    """What a caption of `data/shapes.py` says, with or without direction and speed; None for any other text."""
    found = _CAPTION.fullmatch(text.strip())
    if found is None:
        return None
    said = found.groupdict()
    return ShapesCaption(
        shape=said["shape"],
        colour=said["colour"],
        direction=said["direction"],
        speed=said["speed"],
        background=said["background"],
        scrolls=said["scrolls"] is not None,
        occluded=said["occluded"] is not None,
    )


def choice_entropy(counts: Tensor) -> Tensor:
    """Entropy of what samples chose: `-sum_k p_k log p_k`, p = counts / sum of counts.

    Args:
        counts: `[..., K]`, how many samples chose each of K.

    Returns:
        `[...]` float64 in nats; 0 where nothing was chosen.

    Raises:
        ValueError: a negative count.
    """
    if bool((counts < 0).any()):
        raise ValueError("counts: expected none below 0")
    share = counts.double() / counts.double().sum(dim=-1, keepdim=True).clamp(min=1)
    return share.mul(share.clamp(min=1e-300).log()).sum(dim=-1).neg().clamp(min=0)


def expected_entropy(samples: int, choices: int) -> float:
    """Mean `choice_entropy` of `samples` independent uniform choices among K.

        log S - K / S * sum_k binomial(S, k) (1 / K)^k (1 - 1 / K)^(S - k) k log k

    It is below log K since few samples can't be even: 0.52 for 2 of 4, against 1.39.
    """
    _check(samples, choices)
    return math.log(samples) - choices / samples * sum(
        _binomial(samples, k, 1 / choices) * k * math.log(k) for k in range(1, samples + 1)
    )


def expected_distinct(samples: int, choices: int) -> float:
    """How many different ones `samples` independent uniform choices among K take: `K (1 - (1 - 1 / K)^S)`."""
    _check(samples, choices)
    return choices * (1 - (1 - 1 / choices) ** samples)


def _check(samples: int, choices: int) -> None:
    if samples < 1 or choices < 1:
        raise ValueError(f"samples, choices: expected at least 1 of each, got {samples} and {choices}")


def _binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)
