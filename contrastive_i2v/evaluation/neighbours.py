"""How two sets of features cover each other, by nearest neighbours: precision, recall, density and coverage.

A Frechet distance can't tell a set that lost modes from one that is blurred; these can. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_i2v.evaluation.moments import check_features

K = 5
"""The neighbour that a ball reaches to, as in Naeem et al. (2020)."""
EXACT = 1 << 30
"""N M d up to which distances are sums of squared differences; beyond, of inner products, with half the digits."""


@dataclass(frozen=True, kw_only=True)
class Cover:
    """Shares in [0, 1], but for the density, which may exceed 1."""

    precision: float
    """Generated samples within the ball of some true one."""
    recall: float
    """True samples within the ball of some generated one."""
    density: float
    """True balls that a generated sample lies in, over K: a mean."""
    coverage: float
    """True samples whose ball holds a generated one."""


@dataclass(frozen=True)
class Distances:
    """Euclidean distances within and between a generated set of N and a true one of M samples."""

    generated: Tensor
    """`[N, N]` float64."""
    true: Tensor
    """`[M, M]`."""
    between: Tensor
    """`[N, M]`."""

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Distances:
        """Of features `x [N, d]`, generated, and `y [M, d]`, true.

        Raises:
            ValueError: naming x or y: not `[N, d]`, a NaN or infinity, or another d.
        """
        for name, features in (("x", x), ("y", y)):
            check_features(name, features)
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"x, y: expected features of one network, got d = {x.shape[1]} and {y.shape[1]}")
        x, y = x.double(), y.double()
        centre = y.mean(dim=0)
        x, y = x - centre, y - centre
        return cls(_distances(x, x), _distances(y, y), _distances(x, y))

    def keep(self, x: Tensor, y: Tensor) -> Distances:
        """Of the samples at indices `x` and `y` alone."""
        return Distances(self.generated[x][:, x], self.true[y][:, y], self.between[x][:, y])

    @property
    def most(self) -> int:
        """The largest K that both sets have neighbours for."""
        return min(len(self.generated), len(self.true)) - 1

    def cover(self, k: int = K) -> Cover:
        """Precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020).

            r(y) = distance from y to its k-th nearest other true sample;  B(y) = {z: |z - y| <= r(y)};  B(x) alike
            precision = mean over x of [x in some B(y)],   recall = mean over y of [y in some B(x)]
            density = 1 / (k N) sum over x, y of [x in B(y)],   coverage = mean over y of [some x in B(y)]

        Balls are closed, so that a set covers itself even where k samples or more are equal.

        Raises:
            ValueError: k < 1, or not at least k + 1 samples in both sets.
        """
        if not 1 <= k <= self.most:
            raise ValueError(f"k: expected 1 to {self.most}, one less than the smaller set has samples, got {k}")
        in_true = self.between <= _radii(self.true, k)  # [N, M]
        in_generated = self.between <= _radii(self.generated, k)[:, None]
        return Cover(
            precision=float(in_true.any(dim=1).double().mean()),
            recall=float(in_generated.any(dim=0).double().mean()),
            density=float(in_true.double().sum(dim=1).mean() / k),
            coverage=float(in_true.any(dim=0).double().mean()),
        )


def cover(x: Tensor, y: Tensor, k: int = K) -> Cover:
    """`Distances.of(x, y).cover(k)`: generated features `x [N, d]` against true ones `y [M, d]`."""
    return Distances.of(x, y).cover(k)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    exact = len(x) * len(y) * x.shape[1] <= EXACT
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    return torch.cdist(x, y, compute_mode=mode)


def _radii(within: Tensor, k: int) -> Tensor:
    """Distance to the k-th nearest other sample: `[N, N]` -> `[N]`."""
    others = within.clone().fill_diagonal_(torch.inf)
    return others.kthvalue(k, dim=1).values
