"""Distances between sets of features against closed forms and against torchmetrics with the same features."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation.distribution import (
    Moments,
    extrapolated_frechet_distance,
    frechet_distance,
    inception_score,
    kernel_distance,
)
from contrastive_i2v.evaluation.suite.metrics.distribution import FVD


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(rows: int, dimension: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Correlated features with spread from 1 to 0.1, far from the origin as a network's are."""
    draw = torch.randn(rows, dimension, dtype=torch.float64, generator=generator(seed))
    mix = torch.randn(dimension, dimension, dtype=torch.float64, generator=generator(77)) / dimension**0.5
    return draw * torch.linspace(1, 0.1, dimension, dtype=torch.float64) @ mix * scale + 3 + shift


def whitened(rows: int, dimension: int, seed: int) -> Tensor:
    """Features whose sample mean is 0 and whose sample covariance is 1, or a projection where N <= d."""
    draw = torch.randn(rows, dimension, dtype=torch.float64, generator=generator(seed))
    left, _, right = torch.linalg.svd(draw - draw.mean(dim=0), full_matrices=False)
    rank = min(rows - 1, dimension)
    return left[:, :rank] @ right[:rank] * (rows - 1) ** 0.5


def by_square_root(x: Tensor, y: Tensor) -> float:
    """The textbook formula with scipy's matrix square root of the product."""
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is compared with")
    product = linalg.sqrtm((torch.cov(x.T) @ torch.cov(y.T)).numpy())
    gap = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    return float(gap + torch.cov(x.T).trace() + torch.cov(y.T).trace() - 2 * product.real.trace())


def by_torchmetrics(metric: str, real: Tensor, fake: Tensor, **options: object) -> object:
    """torchmetrics' number, through a network that returns its input."""
    module = pytest.importorskip(f"torchmetrics.image.{metric}", reason="torchmetrics is compared with")
    network = torch.nn.Identity()
    network.num_features = real.shape[1]  # type: ignore[assignment]
    name = {"fid": "FrechetInceptionDistance", "kid": "KernelInceptionDistance"}[metric]
    one = getattr(module, name)(feature=network, **options)
    one.update(real, real=True)
    one.update(fake, real=False)
    return one.compute()


def test_covariances_divide_by_n_minus_1() -> None:
    """Against both conventions in NumPy, and what the metric says of them."""
    x, y = normal(120, 6, 1), normal(120, 6, 2) * 1.5 + 0.1

    def by_numpy(bias: bool) -> tuple[float, float]:
        a, b = (np.cov(one.numpy().T, bias=bias) for one in (x, y))
        roots = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
        means = float(((x.mean(dim=0) - y.mean(dim=0)) ** 2).sum())
        return means, float(np.trace(a) + np.trace(b) - 2 * roots)

    means, ours = by_numpy(bias=False)
    theirs = by_numpy(bias=True)[1]
    assert frechet_distance(x, y) == pytest.approx(means + ours, rel=1e-9)
    assert theirs == pytest.approx(ours * 119 / 120, rel=1e-9)
    assert "covariances divided by N - 1" in FVD.definition and "divide by N, which" in FVD.definition


# --- moments


def test_moments_of_batches_are_those_of_all_rows() -> None:
    features = normal(700, 130, 1)
    moments = Moments()
    for batch in features.split([1, 299, 400]):
        moments.update(batch)
    assert (moments.count, moments.dimension) == (700, 130)
    torch.testing.assert_close(moments.mean, features.mean(dim=0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(moments.covariance, torch.cov(features.T), rtol=1e-11, atol=1e-13)


def test_moments_widen_before_they_add_and_keep_digits_beside_a_large_mean() -> None:
    features = torch.tensor([[4097.0, 0.0], [4099.0, 1.0], [4101.0, 2.0]])  # squares need 25 bits
    moments = Moments.of(features)
    assert moments.mean.tolist() == [4099.0, 1.0]
    assert moments.covariance.tolist() == [[4.0, 2.0], [2.0, 1.0]]
    far = torch.tensor([[1e8 - 1], [1e8], [1e8 + 1]], dtype=torch.float64)
    assert Moments.of(far).covariance.tolist() == [[1.0]]  # sum of squares minus square of sums gives 0 or 2 here


def test_moments_refuse_what_they_cannot_use_and_stay_as_they_were() -> None:
    moments = Moments.of(normal(5, 3, 0))
    before = moments.covariance
    with pytest.raises(ValueError, match="features: 1 of 2 rows hold NaN or infinity, the first is row 1"):
        moments.update(torch.tensor([[1.0, 2, 3], [1, math.inf, 3]]))
    with pytest.raises(ValueError, match="d = 3 as in the batches before, got 4"):
        moments.update(torch.ones(2, 4))
    assert moments.count == 5
    assert torch.equal(moments.covariance, before)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        _ = Moments.of(torch.ones(1, 3)).covariance


# --- Frechet distance


@pytest.mark.parametrize("rows", [6, 9, 40], ids=["N < d", "N = d + 1", "N > d"])
def test_frechet_distance_of_gaussians_that_commute(rows: int) -> None:
    """With covariances s^2 and t^2 on one set of axes it is |shift|^2 + sum (s - t)^2."""
    x = whitened(rows, 8, 0)
    rank = min(rows - 1, 8)
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * rank, rel=1e-12)
    assert frechet_distance(x, x + 0.5) == pytest.approx(8 * 0.25, rel=1e-12)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_by_hand_in_one_dimension() -> None:
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0], [9.0]])  # variances 2 and 16
    assert frechet_distance(x, y) == pytest.approx((5 - 1) ** 2 + (4 - 2**0.5) ** 2, rel=1e-14)


@pytest.mark.parametrize(("n", "m"), [(300, 200), (40, 40), (65, 64), (300, 20), (2, 300), (2, 2)])
def test_frechet_distance_equals_the_matrix_square_root(n: int, m: int) -> None:
    x, y = normal(n, 64, 1), normal(m, 64, 2, scale=1.3, shift=0.2)
    assert frechet_distance(x, y) == pytest.approx(by_square_root(x, y), rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-12)


@pytest.mark.parametrize("rows", [400, 48])
def test_frechet_distance_equals_torchmetrics(rows: int) -> None:
    x, y = normal(rows, 64, 1), normal(rows, 64, 2, scale=1.3)
    theirs = by_torchmetrics("fid", x, y)
    assert frechet_distance(x, y) == pytest.approx(float(theirs), rel=1e-6)  # type: ignore[arg-type]


def test_moments_and_features_give_the_same_distance() -> None:
    x, y = normal(200, 32, 1), normal(20, 32, 2)
    plain = frechet_distance(x, y)
    assert frechet_distance(Moments.of(x), y) == pytest.approx(plain, rel=1e-12)
    # y's covariance is singular here: only the way by its eigenvectors is left
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(plain, rel=1e-8)


def test_features_that_never_fire_change_nothing() -> None:
    x, y = normal(200, 24, 1), normal(200, 24, 2, scale=1.2)
    dead = torch.zeros(200, 40, dtype=torch.float64)
    padded = frechet_distance(torch.cat([x, dead], dim=1), torch.cat([y, dead], dim=1))
    assert padded == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert frechet_distance(dead, dead + 1) == 40


def test_repeated_rows_leave_the_covariance_singular_and_the_distance_right() -> None:
    """Spreads over eight decades: the eigenvalues of products of covariances have no digits left of the small ones."""
    spread = torch.logspace(0, -8, 16, dtype=torch.float64)
    x = whitened(64, 16, 0) * spread
    assert frechet_distance(x, 2 * x) == pytest.approx(float(spread.square().sum()), rel=1e-9)


def test_frechet_distance_rotates_and_scales_with_the_features() -> None:
    x, y = normal(90, 16, 1).float(), normal(80, 16, 2).float()
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=generator()))[0]
    plain = frechet_distance(x, y)
    assert frechet_distance(x.double() @ turn, y.double() @ turn) == pytest.approx(plain, rel=1e-10)
    assert frechet_distance(2 * x, 2 * y) == pytest.approx(4 * plain, rel=1e-10)


@pytest.mark.parametrize("distance", [frechet_distance, lambda x, y: kernel_distance(x, y, generator=generator())])
def test_bad_features_are_named(distance: Callable[[Tensor, Tensor], object]) -> None:
    good, bad = normal(5, 3, 0), normal(5, 3, 1)
    bad[2, 1] = math.nan
    with pytest.raises(ValueError, match="x: 1 of 5 rows hold NaN or infinity, the first is row 2"):
        distance(bad, good)
    with pytest.raises(ValueError, match="y: 1 of 5 rows"):
        distance(good, bad)
    with pytest.raises(ValueError, match="y: expected at least 2 rows, as a spread needs, got 1"):
        distance(good, good[:1])
    with pytest.raises(ValueError, match=r"x: expected features .* got \[0, 3\]"):
        distance(good[:0], good)
    with pytest.raises(ValueError, match="d = 3 and 2"):
        distance(good, good[:, :2])
    with pytest.raises(ValueError, match=r"x: .* got \[5\]"):
        distance(good[:, 0], good)


def test_single_moments_are_named() -> None:
    with pytest.raises(ValueError, match="y: expected at least 2 rows, as a spread needs, got 1"):
        frechet_distance(torch.randn(4, 3), Moments.of(torch.ones(1, 3)))


# --- extrapolation


def test_extrapolation_finds_the_distance_that_few_samples_hide() -> None:
    """Two samples of one distribution: the plain distance has a bias, the extrapolated one is about 0."""
    plain, extrapolated = [], []
    for seed in range(5):
        x, y = normal(512, 48, 2 * seed), normal(512, 48, 2 * seed + 1)
        plain.append(frechet_distance(x, y))
        extrapolated.append(extrapolated_frechet_distance(x, y, generator(seed)))
    assert min(plain) > 0.2
    assert abs(sum(extrapolated)) < 0.1 * sum(plain)


def test_extrapolation_of_a_known_distance_and_its_own_generator() -> None:
    x, y = normal(400, 16, 1), normal(400, 16, 2, shift=1.0)
    found = extrapolated_frechet_distance(x, y, generator(3))
    assert found == pytest.approx(16, rel=0.1)
    assert found == extrapolated_frechet_distance(x, y, generator(3))
    assert found != extrapolated_frechet_distance(x, y, generator(4))
    whole = extrapolated_frechet_distance(x, Moments.of(y), generator(3))
    assert whole == pytest.approx(16, rel=0.1)
    with pytest.raises(ValueError, match="y: expected at least 10 rows to extrapolate from, got 9"):
        extrapolated_frechet_distance(x, y[:9], generator())


# --- kernel distance


def test_kernel_distance_by_hand() -> None:
    """Of {0, 1} and {1, 2} in one dimension, k(u, v) = (uv + 1)^3."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    # inside x: k(0, 1) = 1; inside y: k(1, 2) = 27; across: 1 + 1 + 8 + 27 over 4
    mean, spread = kernel_distance(x, y, generator=generator())
    assert mean == pytest.approx(1 + 27 - 2 * 37 / 4, rel=1e-14)
    assert math.isnan(spread)  # the one subset there is


@pytest.mark.parametrize("subset_size", [50, 8], ids=["one kernel matrix", "one a subset"])
def test_kernel_distance_equals_torchmetrics_on_the_same_subsets(subset_size: int) -> None:
    real, fake = normal(60, 12, 1), normal(110, 12, 2, scale=1.2)
    torch.manual_seed(5)  # torchmetrics draws from the global generator
    theirs = by_torchmetrics("kid", real, fake, subsets=20, subset_size=subset_size)
    ours = kernel_distance(real, fake, subsets=20, subset_size=subset_size, generator=generator(5))
    assert ours == pytest.approx([float(one) for one in theirs], rel=1e-9)  # type: ignore[attr-defined]


def test_kernel_distance_caps_the_subsets_at_the_smaller_set() -> None:
    x, y = normal(30, 8, 1), normal(50, 8, 2)
    assert kernel_distance(x, y, subset_size=1000, generator=generator(1)) == kernel_distance(
        x, y, subset_size=30, generator=generator(1)
    )
    with pytest.raises(ValueError, match="subsets, subset_size"):
        kernel_distance(x, y, subset_size=1, generator=generator())


def test_kernel_distance_has_no_bias() -> None:
    """Few samples of one distribution: 0 on average, where the Frechet distance is far from it."""
    values = [
        kernel_distance(normal(20, 32, 2 * seed), normal(20, 32, 2 * seed + 1), generator=generator())[0]
        for seed in range(200)
    ]
    mean = sum(values) / len(values)
    error = torch.tensor(values).std() / len(values) ** 0.5
    assert abs(mean) < 3 * error
    shifted = kernel_distance(normal(20, 32, 0), normal(20, 32, 1, shift=1.0), generator=generator())[0]
    assert shifted > 10 * torch.tensor(values).std()


# --- Inception Score


def test_inception_score_is_1_for_no_opinion_and_k_for_sure_and_varied() -> None:
    unsure = torch.full((40, 5), 0.2)
    assert inception_score(unsure, splits=4, generator=generator()) == pytest.approx((1, 0), abs=1e-12)
    sure = torch.eye(5).repeat(8, 1)
    assert inception_score(sure, splits=1, generator=generator())[0] == pytest.approx(5, rel=1e-12)


def test_inception_score_by_hand() -> None:
    """Rows (1, 0) and (1/2, 1/2), mean (3/4, 1/4): KL log 4/3 and 1/2 log 2/3 + 1/2 log 2."""
    score, spread = inception_score(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), splits=1, generator=generator())
    assert score == pytest.approx(math.exp((math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2))
    assert math.isnan(spread)


def test_inception_score_equals_torchmetrics_on_the_same_splits() -> None:
    image = pytest.importorskip("torchmetrics.image.inception", reason="torchmetrics is compared with")
    logits = 2 * torch.randn(200, 7, dtype=torch.float64, generator=generator())
    metric = image.InceptionScore(feature=torch.nn.Identity(), splits=10)
    metric.update(logits)
    torch.manual_seed(9)
    mean, spread = metric.compute()
    ours = inception_score(logits.softmax(dim=1), splits=10, generator=generator(9))
    assert ours[0] == pytest.approx(float(mean), rel=1e-9)
    assert ours[1] == pytest.approx(float(spread) * (9 / 10) ** 0.5, rel=1e-9)  # they divide by splits - 1


def test_inception_score_wants_probabilities() -> None:
    with pytest.raises(ValueError, match="logits need a softmax"):
        inception_score(torch.randn(8, 3, generator=generator()), generator=generator())
    with pytest.raises(ValueError, match="probabilities: 1 of 2 rows hold NaN"):
        inception_score(torch.tensor([[0.5, 0.5], [math.nan, 1]]), generator=generator())
    with pytest.raises(ValueError, match="splits: expected at least 1, got 0"):
        inception_score(torch.full((4, 2), 0.5), splits=0, generator=generator())
    assert inception_score(torch.eye(3), splits=10, generator=generator())[0] == pytest.approx(1)
