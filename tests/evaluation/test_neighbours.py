"""Precision, recall, density and coverage against a loop in NumPy and against cases known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation import neighbours
from contrastive_i2v.evaluation.neighbours import Distances, cover


def normal(rows: int, dimension: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(rows, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


def by_loops(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """The definitions, a pair at a time."""

    def radius(points: np.ndarray, i: int) -> float:
        others = [float(np.linalg.norm(points[i] - points[j])) for j in range(len(points)) if j != i]
        return sorted(others)[k - 1]

    true, generated = ([radius(of, i) for i in range(len(of))] for of in (y, x))
    apart = [[float(np.linalg.norm(a - b)) for b in y] for a in x]
    precision = np.mean([any(apart[i][j] <= true[j] for j in range(len(y))) for i in range(len(x))])
    recall = np.mean([any(apart[i][j] <= generated[i] for i in range(len(x))) for j in range(len(y))])
    density = sum(apart[i][j] <= true[j] for i in range(len(x)) for j in range(len(y))) / (k * len(x))
    coverage = np.mean([any(apart[i][j] <= true[j] for i in range(len(x))) for j in range(len(y))])
    return float(precision), float(recall), float(density), float(coverage)


@pytest.mark.parametrize(("n", "m", "d", "k", "shift"), [(23, 31, 3, 5, 0.7), (40, 17, 9, 3, 0.2), (6, 8, 2, 1, 1.5)])
def test_agrees_with_the_definitions(n: int, m: int, d: int, k: int, shift: float) -> None:
    x, y = normal(n, d, 0, shift), normal(m, d, 1)
    found = cover(x, y, k)
    expected = by_loops(x.numpy(), y.numpy(), k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, abs=1e-12)
    assert 0 < found.precision < 1 or 0 < found.recall < 1  # the case tells something


def test_a_set_covers_itself_even_where_samples_are_equal() -> None:
    x = normal(20, 4, 0).repeat_interleave(3, dim=0)  # balls of radius 0 for k = 2
    for k in (1, 2, 5):
        found = cover(x, x, k)
        assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert cover(normal(20, 4, 0), normal(20, 4, 0), 5).density == pytest.approx(6 / 5)  # a sample and its 5 nearest


def test_sets_far_apart_share_nothing() -> None:
    found = cover(normal(30, 4, 0, shift=100), normal(30, 4, 1))
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_lost_modes_lower_recall_and_coverage_not_precision() -> None:
    centres = torch.eye(5, dtype=torch.float64) * 50
    true = torch.cat([normal(20, 5, mode) + centres[mode] for mode in range(5)])
    whole = torch.cat([normal(20, 5, 10 + mode) + centres[mode] for mode in range(5)])
    two = torch.cat([normal(50, 5, 20 + mode) + centres[mode] for mode in range(2)])
    all_modes, lost = cover(whole, true), cover(two, true)
    assert lost.precision > 0.9 and all_modes.precision > 0.9
    assert lost.recall <= 0.4 and lost.coverage <= 0.4  # two of five modes
    assert all_modes.recall > 0.9 and all_modes.coverage > 0.9


def test_inner_products_agree_with_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(40, 7, 0, shift=30.3), normal(35, 7, 1, shift=30)
    exact = cover(x, y)
    monkeypatch.setattr(neighbours, "EXACT", 0)
    assert cover(x, y) == exact


def test_a_part_of_the_samples_is_as_if_the_others_were_not_there() -> None:
    x, y = normal(20, 3, 0, 0.5), normal(25, 3, 1)
    rows, columns = torch.tensor([0, 3, 4, 7, 9, 15]), torch.tensor([1, 2, 5, 8, 13, 20, 24])
    assert Distances.of(x, y).keep(rows, columns).cover(3) == cover(x[rows], y[columns], 3)


def test_refusals() -> None:
    x = normal(6, 3, 0)
    with pytest.raises(ValueError, match="k: expected 1 to 5"):
        cover(x, x, 6)
    with pytest.raises(ValueError, match="k: expected"):
        cover(x, x, 0)
    with pytest.raises(ValueError, match="d = 3 and 2"):
        cover(x, x[:, :2])
    with pytest.raises(ValueError, match="^y: "):
        cover(x, x * float("nan"))
