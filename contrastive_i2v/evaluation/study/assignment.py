"""Who sees what where: chance that is fixed by (seed, rater, pair), so that a study can be resumed and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from contrastive_i2v.evaluation.study.questions import Side


def left_method(seed: int, rater: str, pair: str) -> Side:
    """The method on the left: `b` where the first byte of sha256("side", seed, rater, pair) is odd."""
    return "b" if _digest("side", seed, rater, pair)[0] % 2 else "a"


def shuffled(seed: int, rater: str, pairs: Sequence[str]) -> list[str]:
    """The pairs in this rater's own order, so that no pair is always judged by tired eyes."""
    return sorted(pairs, key=lambda pair: _digest("order", seed, rater, pair))


def _digest(purpose: str, seed: int, rater: str, pair: str) -> bytes:
    return hashlib.sha256("\0".join((purpose, str(seed), rater, pair)).encode()).digest()
