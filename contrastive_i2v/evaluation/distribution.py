"""Two sets of features as two distributions: Frechet distance, kernel distance, and the Inception Score of one set.

Everything is float64; features `[N, d]` of any floating type are widened a piece at a time. Which network the features
come from decides what the numbers mean: on Inception's the first two are FID and KID, on I3D's the first is FVD.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contrastive_i2v.evaluation.moments import Features, Moments, check_features, pieces

__all__ = [
    "Features",
    "Moments",
    "extrapolated_frechet_distance",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
]


def frechet_distance(x: Features, y: Features) -> float:
    """Frechet distance between the Gaussians with the moments of two sets of features (Heusel et al., 2017: FID).

        |mean_x - mean_y|^2 + tr Sx + tr Sy - 2 tr (Sx Sy)^(1/2),   S = Xc^T Xc / (N - 1)

    With any factors `Sx = A^T A` and `Sy = B^T B` the last trace is the nuclear norm `||A B^T||_*`. For N <= d the
    centred features are such a factor, `||Xc Yc^T||_* / sqrt((n - 1) (m - 1))`, which takes N x N matrices alone; for
    N > d the Cholesky factor is.

    Dividing by N - 1 is what pytorch-fid and clean-fid do. cd-fvd and StyleGAN-V divide by N in their FVD, which makes
    the covariances' part (N - 1) / N of ours for two sets of N: 0.06 to 1 % less at usual N.

    It grows as N shrinks: two samples of one distribution are far from 0 while N is of the order of d.
    `extrapolated_frechet_distance` and `kernel_distance` answer for small N.

    Args:
        x: `[N, d]`, or the `Moments` of features too many to hold.
        y: `[M, d]`, or `Moments`.

    Raises:
        ValueError: naming x or y: not `[N, d]`, fewer than two rows, a NaN or infinity, or another d.
    """
    _check_pair(x, y)
    (mean_x, a), (mean_y, b) = _mean_and_factor(x), _mean_and_factor(y)
    squares = (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum()
    return max(0.0, float(squares) - 2 * nuclear_norm(a @ b.T))


def extrapolated_frechet_distance(x: Tensor, y: Features, generator: torch.Generator, *, sizes: int = 15) -> float:
    """The Frechet distance that an infinite number of samples would have (Chong and Forsyth, 2020: FID_infinity).

        distance(n) = a + b / n, by least squares over subsets of n rows;  the result is a

    Subsets are drawn without repetition, at `sizes` sizes evenly spaced from N / 2 to N. Where y is a tensor it
    shrinks in proportion, since its own small count adds to the distance as much; `Moments` of y stay whole, as in
    the paper. The law holds from N of about 2 d: below that the result is better than `frechet_distance`, and still too
    large. It isn't clamped, so that it has no bias upwards at 0: a small negative number means "no distance seen".

    Raises:
        ValueError: as `frechet_distance`, or fewer than 10 rows.
    """
    _check_pair(x, y)
    for name, features in (("x", x), ("y", y)):
        if isinstance(features, Tensor) and len(features) < 10:
            raise ValueError(f"{name}: expected at least 10 rows to extrapolate from, got {len(features)}")
    inverses, distances = [], []
    for share in torch.linspace(0.5, 1, sizes, dtype=torch.float64).tolist():
        subsets = [
            one if isinstance(one, Moments) else _rows(one, round(share * len(one)), generator) for one in (x, y)
        ]
        distances.append(frechet_distance(*subsets))
        inverses.append(1 / share)
    inverse, distance = (torch.tensor(one, dtype=torch.float64) for one in (inverses, distances))
    centred = inverse - inverse.mean()
    slope = (centred @ distance) / centred.square().sum()
    return float(distance.mean() - slope * inverse.mean())


def kernel_distance(
    x: Tensor, y: Tensor, *, subsets: int = 100, subset_size: int = 1000, generator: torch.Generator
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy with a cubic kernel (Binkowski et al., 2018: KID).

        k(u, v) = (u.v / d + 1)^3
        MMD^2 = sum_{i != j} (k(x_i, x_j) + k(y_i, y_j)) / (n (n - 1)) - 2 sum_{ij} k(x_i, y_j) / n^2

    over `subsets` random subsets of n = min(subset_size, N, M) rows of each. It has no bias, so it may be negative, and
    it can be compared between different N.

    Args:
        x: `[N, d]`.
        y: `[M, d]`.

    Returns:
        (mean, standard deviation) over the subsets. The second is NaN where every subset is the whole of both sets.

    Raises:
        ValueError: naming x or y: not `[N, d]`, fewer than two rows, a NaN or infinity, or another d; `subsets` < 1
            or `subset_size` < 2.
    """
    _check_pair(x, y)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"subsets, subset_size: expected at least 1 subset of 2 rows, got {subsets} of {subset_size}")
    size = min(subset_size, len(x), len(y))
    if size == len(x) == len(y):
        whole = torch.ones(1, size, dtype=torch.float64, device=x.device)
        return float(_mmd(x, y, whole, whole)), math.nan
    draws = [tuple(torch.randperm(len(one), generator=generator)[:size] for one in (x, y)) for _ in range(subsets)]
    if max(len(x), len(y)) ** 2 <= subsets * size**2:  # one kernel matrix for all costs less than one each
        members = x.new_zeros(subsets, len(x), dtype=torch.float64), y.new_zeros(subsets, len(y), dtype=torch.float64)
        for at, draw in enumerate(draws):
            for of_set, rows in zip(members, draw, strict=True):
                of_set[at, rows] = 1
        values = _mmd(x, y, *members)
    else:
        whole = torch.ones(1, size, dtype=torch.float64, device=x.device)
        values = torch.cat([_mmd(x[of_x], y[of_y], whole, whole) for of_x, of_y in draws])
    return float(values.mean()), float(values.std(correction=0))


def inception_score(probabilities: Tensor, *, splits: int = 10, generator: torch.Generator) -> tuple[float, float]:
    """How sure a classifier is of each image and how varied it finds them all (Salimans et al., 2016: IS).

        exp(mean_n sum_k p[n, k] log(p[n, k] / mean_n p[n, k]))

    in each of `splits` random parts of equal size (fewer where N is smaller).

    Args:
        probabilities: `[N, K]`, rows summing to 1.

    Returns:
        (mean, standard deviation) over the parts; between 1 and K. The second is NaN for one part.

    Raises:
        ValueError: not `[N, K]`, empty, a NaN, or rows that aren't probabilities.
    """
    check_features("probabilities", probabilities)
    if splits < 1:
        raise ValueError(f"splits: expected at least 1, got {splits}")
    off = (probabilities.double().sum(dim=1) - 1).abs()
    if float(probabilities.min()) < 0 or float(off.max()) > 1e-3:
        raise ValueError("probabilities: expected rows of non-negative numbers that sum to 1; logits need a softmax")
    shuffled = probabilities[torch.randperm(len(probabilities), generator=generator)].double()
    scores = []
    for part in shuffled.tensor_split(min(splits, len(shuffled))):
        divergence = torch.xlogy(part, part) - torch.xlogy(part, part.mean(dim=0))  # [n, K]
        scores.append(divergence.sum(dim=1).mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0)) if len(values) > 1 else math.nan


def nuclear_norm(matrix: Tensor) -> float:
    """Sum of the singular values.

    The eigenvalues of the smaller Gram matrix take a fraction of the time and have half the digits where they are
    small beside the largest; only there the singular values themselves are computed.
    """
    if matrix.numel() == 0:
        return 0.0
    squares = torch.linalg.eigvalsh(matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix)
    if float(squares[0]) > 1e-12 * float(squares[-1]):
        return float(squares.sqrt().sum())
    return float(torch.linalg.svdvals(matrix).sum())


def _check_pair(x: Features, y: Features) -> None:
    dimensions = []
    for name, features in (("x", x), ("y", y)):
        if isinstance(features, Tensor):
            check_features(name, features)
        count = features.count if isinstance(features, Moments) else len(features)
        if count < 2:
            raise ValueError(f"{name}: expected at least 2 rows, as a spread needs, got {count}")
        dimensions.append(features.dimension if isinstance(features, Moments) else features.shape[1])
    if dimensions[0] != dimensions[1]:
        raise ValueError(f"x, y: expected features of one network, got d = {dimensions[0]} and {dimensions[1]}")


def _mean_and_factor(features: Features) -> tuple[Tensor, Tensor]:
    """The mean `[d]` and a factor A `[k, d]` of the covariance, `A^T A`."""
    if isinstance(features, Tensor) and len(features) <= features.shape[1]:
        rows = features.double()
        mean = rows.mean(dim=0)
        return mean, reflected(rows - mean) / math.sqrt(len(rows) - 1)
    moments = features if isinstance(features, Moments) else Moments.of(features)
    covariance = moments.covariance
    factor, failed = torch.linalg.cholesky_ex(covariance, upper=True)
    if int(failed) == 0:
        return moments.mean, factor
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1]
    return moments.mean, (vectors[:, kept] * values[kept].sqrt()).T


def reflected(centred: Tensor) -> Tensor:
    """`[N, d]` with mean 0 -> `[N - 1, d]` with the same `x^T x`.

    The Householder reflection that takes the vector of ones to the first axis makes row 0 zero, which is left out: so
    cross products with other features are N - 1 wide and have full rank.
    """
    return centred[1:] - centred[0] / (math.sqrt(len(centred)) + 1)


def _rows(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=generator)[:count]]


def _mmd(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """MMD^2 of S subsets, each of n rows, given by indicators `in_x [S, N]` and `in_y [S, M]` -> `[S]`."""
    size = float(in_x[0].sum())
    within = _kernel_sums(x, x, in_x, in_x) - in_x @ _kernel_diagonal(x)
    within = within + _kernel_sums(y, y, in_y, in_y) - in_y @ _kernel_diagonal(y)
    return within / (size * (size - 1)) - 2 * _kernel_sums(x, y, in_x, in_y) / size**2


def _kernel_sums(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """`sum_ij in_x[s, i] k(x_i, y_j) in_y[s, j]` for each s, a strip of the kernel matrix at a time."""
    y = y.double()
    total = in_x.new_zeros(len(in_x))
    for rows, members in zip(pieces(x, len(y)), pieces(in_x.T, len(y)), strict=True):
        kernel = (rows.double() @ y.T / y.shape[1] + 1) ** 3  # [n, M]
        total += ((members.T @ kernel) * in_y).sum(dim=1)
    return total


def _kernel_diagonal(x: Tensor) -> Tensor:
    return (x.double().square().sum(dim=1) / x.shape[1] + 1) ** 3
