"""Both regimes on the hazards, against float64 and eager; the large one is forced on problems of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from calls import positional, run, to_device
from contrastive_i2v.kernels import diffusion_loss, dispatch
from problems import HAZARDS, eager, error, make, to_double
from problems import run as run_op
from test_numerics import lower
from torch import Tensor

from contrastive_i2v.ops.reference import diffusion_loss_reference

pytestmark = pytest.mark.triton

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every problem takes the large regime, in strips."""
    monkeypatch.setattr(dispatch, "MAX_SMALL_LOGITS", -1)
    yield


def truth_of(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    out, gradient = run_op(to_double(arguments), "reference")
    return out.contrastive, gradient


# Calls of the interpreter take a second: each case below covers what no other does.
CASES = [(dtype, False) for dtype in DTYPES] + [(torch.bfloat16, True)]


@pytest.mark.parametrize(("dtype", "normalize"), CASES)
@pytest.mark.parametrize("name", HAZARDS)
def test_large_gradient_error_is_at_most_twice_eagers(large: None, name: str, dtype: Any, normalize: bool) -> None:
    arguments = lower(HAZARDS[name](), dtype) | {"normalize": normalize}
    if normalize:
        arguments["temperature"] = 0.002 if name == "saturated" else 0.07
    loss, _, contrastive, gradient = run(arguments)
    _, truth = truth_of(arguments)
    _, plain = eager(arguments)
    assert loss.isfinite()
    assert (contrastive >= 0).all()
    assert not error(gradient, truth) > 2 * error(plain, truth)  # eager in float16 overflows: its bar is NaN
    assert error(gradient, truth) < {torch.float32: 2e-3, torch.bfloat16: 1e-2, torch.float16: 5e-2}[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
def test_large_agrees_with_float64(large: None, dtype: Any, normalize: bool) -> None:
    """Three banks, more rows than a tile, a ragged end. x0 is rounded to 16 bits here, once."""
    arguments = make(270, [300, 17, 260], [21], dtype=dtype, options=True) | {"normalize": normalize}
    if normalize:
        arguments["temperature"] = 0.07
    _, _, contrastive, gradient = run(arguments)
    expected_contrastive, expected = truth_of(arguments)
    unit = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert error(contrastive, expected_contrastive) < unit / 4
    assert error(gradient, expected) < unit


def test_strips_do_not_change_a_bit(large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = make(260, [20, 17], [12], dtype=torch.bfloat16, options=True)
    whole = run(arguments)
    from contrastive_i2v.kernels import large as module

    monkeypatch.setattr(module, "strip_rows", lambda *_: 256)
    for one, other in zip(whole, run(arguments), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tiles_that_differ_by_hundreds_of_octaves(large: None, dtype: Any) -> None:
    """Each tile stores exp(l - its own reference); here the second tile's logits tower over the first's in half of
    the rows and vanish beside them in the others, near and far from where they would all be rounded to nothing."""
    arguments = make(64, [300], [16], dtype=dtype, seed=3) | {"temperature": 1.0}
    arguments["noisy"][:] = 0
    arguments["c_out"] = torch.linspace(-40, 40, 64)
    arguments["prediction"][:, 0] = 1
    arguments["banks"][0][:, 0] = (torch.arange(300) >= 256).to(dtype)  # moves the last tile's logits by c_out
    arguments["banks"][0][:, 1:] *= 0.05
    _, _, contrastive, gradient = run(arguments)
    expected_contrastive, expected = truth_of(arguments)
    assert error(contrastive, expected_contrastive) < {torch.float32: 1e-6}.get(dtype, 1e-3)
    assert error(gradient, expected) < {torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", ["prediction", "noisy", "target", "c_skip", "c_out", "banks", "temperature"])
def test_large_shows_what_is_not_finite(large: None, name: str, normalize: bool) -> None:
    value = float("inf" if name == "temperature" else "-inf")  # a NaN is what is hard to lose
    arguments = make(2, [4], [6]) | {"normalize": normalize, "temperature": torch.tensor(0.5)}
    arguments |= {"positives": [torch.tensor([-1, 2])]}
    arguments |= {"query_groups": torch.tensor([0, 1]), "bank_groups": [torch.tensor([0, 1, 2, 0])]}
    tensor = arguments[name][0] if name == "banks" else arguments[name]
    tensor.reshape(-1)[-1 if name == "banks" else 0] = value
    assert not run(arguments, gradient=False)[0].isfinite()


@pytest.mark.parametrize("forced", [False, True])
def test_bad_values_are_nan_where_they_cannot_be_read(forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from contrastive_i2v.kernels import arguments as module

    monkeypatch.setattr(module, "_check_values", lambda *_: None)
    if forced:
        monkeypatch.setattr(dispatch, "MAX_SMALL_LOGITS", -1)
    good = make(2, [3], [4]) | {"positives": [torch.tensor([0, 1])]}
    assert run(good)[0].isfinite()
    for positive in (3, -2, 1 << 40):
        assert run(good | {"positives": [torch.tensor([0, positive])]})[0].isnan()
    for temperature in (0.0, -1.0, float("inf")):
        assert run(good | {"temperature": torch.tensor(temperature)})[0].isnan()


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_edges_agree_with_the_reference(forced: bool, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone candidate, every other one excluded, zero rows, a mixture of dtypes."""
    if forced:
        monkeypatch.setattr(dispatch, "MAX_SMALL_LOGITS", -1)
    alone = make(3, [1], [5]) | {"positives": [torch.tensor([0, -1, 0])]}
    excluded = make(2, [4], [9]) | {"query_groups": torch.tensor([7, 7]), "bank_groups": [torch.full((4,), 7)]}
    zeros = make(2, [3], [6])
    for name in ("prediction", "noisy", "target"):
        zeros[name][0] = 0
    zeros["banks"][0][2] = 0
    mixed = make(3, [4, 5], [4, 5, 6])
    mixed["prediction"] = mixed["prediction"].bfloat16()
    mixed["banks"][0] = mixed["banks"][0].half()
    for arguments in (alone, excluded, zeros, mixed):
        arguments["normalize"] = normalize
        expected = diffusion_loss_reference(*positional(arguments))
        got = diffusion_loss(*positional(to_device(arguments)))
        for one, other in zip(got, expected[:4], strict=True):
            rtol = 1e-2 if other.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(one.cpu(), other, rtol=rtol, atol=1e-7)


def test_both_regimes_are_bitwise_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = make(40, [50, 60], [33], dtype=torch.bfloat16, options=True)
    for limit in (1 << 19, -1):
        monkeypatch.setattr(dispatch, "MAX_SMALL_LOGITS", limit)
        for one, other in zip(run(arguments), run(arguments), strict=True):
            assert torch.equal(one, other)
