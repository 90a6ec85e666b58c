"""The float64 truth in strips is the loss as one would write it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import truth
from benchmarks.problems import Case, Problem
from benchmarks.registry import eager, with_gradient


def direct(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """By autograd, in float64."""
    wide = {
        field.name: value.detach().double()
        for field in dataclasses.fields(problem)
        if isinstance(value := getattr(problem, field.name), torch.Tensor) and value.is_floating_point()
    }
    wide["prediction"].requires_grad_()
    banks = [bank.double() for bank in problem.banks]
    return with_gradient(eager)(dataclasses.replace(problem, **wide, banks=banks))  # type: ignore[arg-type]


@pytest.mark.parametrize("strip", [1, 5, 64])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strips_agree_with_autograd(dtype: str, normalize: bool, strip: int) -> None:
    problem = Problem.random(Case(size=13, elements=40, banks=3, dtype=dtype, normalize=normalize))
    loss, gradient = direct(problem)
    for rows in (torch.arange(13), torch.tensor([11, 0, 7])):
        got_loss, got_gradient = truth.exact(problem, rows, strip)
        assert got_loss == pytest.approx(float(loss), rel=1e-12)
        assert truth.relative_error(got_gradient, gradient[rows]) < 1e-12


def test_a_sample_of_the_queries_gives_the_same_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "ROWS_CHECKED", 8)
    problem = Problem.random(Case(size=64, elements=48, dtype="bfloat16"))
    step = with_gradient(eager)
    sampled = truth.establish(problem, step)
    loss, gradient = step(problem)
    assert len(sampled.rows) == 8 and sampled.gradient.shape == (8, 48)
    assert sampled.accepts(*sampled.errors(loss, gradient))
    assert not sampled.accepts(*sampled.errors(loss, gradient * 64 / 8))
    assert not sampled.accepts(*sampled.errors(loss * 1.2, gradient))


def test_both_terms_weigh_in_the_gradient() -> None:
    """Else a kernel could get the contrastive term wrong below the bar."""
    for normalize in (False, True):
        for elements in (1024, 4096):
            problem = Problem.random(Case(size=16, elements=elements, normalize=normalize))
            _, whole = truth.exact(problem, torch.arange(16))
            _, diffusion = truth.exact(dataclasses.replace(problem, banks=[]), torch.arange(16))
            share = float((whole - diffusion).norm() / whole.norm())
            assert 0.1 < share < 0.99, (normalize, elements, share)
