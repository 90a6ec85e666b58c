"""Mean and covariance of features of any number, and what features have to be like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

PIECE = 1 << 22
"""Numbers that are widened to float64 at a time: 32 MB."""
ROWS = 512
"""Rows that moments take at a time: still in the cache when they are multiplied."""


class Moments:
    """Count, mean and covariance of features that come in batches, in memory that doesn't grow with N.

    Each piece is centred on its own mean and joined by Chan, Golub and LeVeque's update (1983), which loses no digits
    to a large mean:

        scatter = scatter + piece_scatter + n m / (n + m) * outer(delta, delta),  delta = piece_mean - mean

    Only the upper triangle is computed, in strips: half the work of `x.T @ x`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)  # [d]
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of one tensor `[N, d]`; errors as for `update`."""
        moments = cls()
        moments.update(features)
        return moments

    def update(self, features: Tensor) -> None:
        """Add `features [n, d]`.

        Raises:
            ValueError: not `[n, d]`, another d than before, or a NaN or infinity; then nothing was added.
        """
        check_features("features", features)
        dimension = features.shape[1]
        if self.count == 0:
            self.mean = features.new_zeros(dimension, dtype=torch.float64)
            self._scatter = features.new_zeros(dimension, dimension, dtype=torch.float64)
        if dimension != self.dimension:
            raise ValueError(f"features: expected d = {self.dimension} as in the batches before, got {dimension}")
        for start in range(0, len(features), ROWS):
            self._join(features[start : start + ROWS])

    def _join(self, piece: Tensor) -> None:
        rows = len(piece)
        mean = piece.mean(dim=0, dtype=torch.float64)
        piece = piece - mean  # float64 from here
        step = max(64, self.dimension // 8)
        for at in range(0, self.dimension, step):
            self._scatter[at : at + step, at:].addmm_(piece[:, at : at + step].T, piece[:, at:])
        delta = mean - self.mean
        total = self.count + rows
        self._scatter.addr_(delta, delta, alpha=self.count * rows / total)
        self.mean = self.mean + delta * (rows / total)
        self.count = total

    @property
    def dimension(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """`[d, d]` float64, with N - 1 below. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance takes at least 2 rows, got {self.count}")
        upper = self._scatter.triu() / (self.count - 1)
        return upper + upper.triu(1).T


Features: TypeAlias = Tensor | Moments
"""Features `[N, d]`, or their moments."""


def check_features(name: str, features: Tensor) -> None:
    """Raise ValueError, naming the argument, unless it is `[N, d]` with N, d >= 1 and finite."""
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"{name}: expected features [N, d] with N, d >= 1, got {list(features.shape)}")
    if bool(features.sum().isfinite()):  # one fast pass; only a sum that isn't finite has its rows looked at
        return
    bad = ~features.isfinite().all(dim=1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: {int(bad.sum())} of {len(features)} rows hold NaN or infinity, the first is row {first}"
        )


def pieces(features: Tensor, width: int | None = None) -> Iterator[Tensor]:
    """Slices of rows, of about `PIECE` numbers where a row takes `width` of them (by default its own length)."""
    rows = max(1, PIECE // (width or features.shape[1]))
    for start in range(0, len(features), rows):
        yield features[start : start + rows]
