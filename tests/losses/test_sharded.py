"""The sharded loss in one process, where it must be the op; several processes are in test_distributed.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import error, make, run, to_double

from contrastive_i2v.losses import sharded_contrastive_diffusion_loss
from contrastive_i2v.ops import sharded as sharded_op


def run_sharded(arguments: dict[str, Any], **more: Any) -> tuple[Any, torch.Tensor]:
    prediction = arguments["prediction"].detach().clone().requires_grad_()
    out = sharded_contrastive_diffusion_loss(**{**arguments, "prediction": prediction}, **more)
    out.loss.backward()
    return out, prediction.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", [True, False])
def test_one_process_is_the_op(dtype: torch.dtype, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_op, "STRIP_ELEMENTS", 50)
    arguments = {**make(9, [13, 21], (3, 5), dtype=dtype, options=True), "normalize": normalize}
    truth, gradient = run(to_double(arguments), backend="reference")
    _, ops_own = run(arguments, backend="reference")
    out, mine = run_sharded(arguments)
    assert mine.dtype == dtype and out.loss.dtype == (dtype if dtype == torch.float64 else torch.float32)
    for value, expected in zip(out, truth, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=2e-6 if dtype != torch.float64 else 1e-13, atol=1e-12)
    assert error(mine, gradient) <= 1.5 * error(ops_own, gradient) + 1e-15


def test_a_query_whose_every_negative_is_excluded() -> None:
    arguments = make(2, [3], (4,), dtype=torch.float64)
    arguments |= {"query_groups": torch.tensor([7, 1]), "bank_groups": [torch.tensor([7, 7, 7])]}
    for positives in ([2, 0], [-1, 0]):
        arguments["positives"] = [torch.tensor(positives)]
        truth, gradient = run(arguments, backend="reference")
        out, mine = run_sharded(arguments)
        torch.testing.assert_close(out.loss, truth.loss)
        assert error(mine, gradient) < 1e-14


@pytest.mark.parametrize("name", ["prediction", "noisy", "banks"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_the_loss(name: str, value: float) -> None:
    arguments = {**make(3, [4], (5,)), "temperature": 1e-3}
    arguments["positives"] = [torch.tensor([0, 1, -1])]  # also from a query without a positive
    tensor = arguments["banks"][0] if name == "banks" else arguments[name]
    tensor[-1, 2] = value
    out, _ = run_sharded(arguments)
    assert not out.loss.isfinite() and not out.contrastive.isfinite().all()


def test_only_the_prediction_may_want_a_gradient_and_only_once() -> None:
    arguments = make(3, [4], (5,))
    bank = arguments["banks"][0].clone().requires_grad_()
    with pytest.raises(ValueError, match=r"banks\[0\] requires a gradient"):
        sharded_contrastive_diffusion_loss(**{**arguments, "banks": [bank]})
    with pytest.raises(ValueError, match="temperature requires a gradient"):
        sharded_contrastive_diffusion_loss(**{**arguments, "temperature": torch.ones((), requires_grad=True)})
    out = sharded_contrastive_diffusion_loss(**{**arguments, "temperature": torch.tensor(2.0)})
    expected = sharded_contrastive_diffusion_loss(**{**arguments, "temperature": 2.0})
    assert torch.equal(out.loss, expected.loss) and not out.loss.requires_grad
    prediction = arguments["prediction"].clone().requires_grad_()
    out = sharded_contrastive_diffusion_loss(**{**arguments, "prediction": prediction})
    assert not out.mse.requires_grad and not out.contrastive.requires_grad
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.loss, prediction, create_graph=True)


def test_bad_input_is_refused() -> None:
    arguments = make(3, [2], (5,))
    with pytest.raises(ValueError, match=r"positives are not given for banks\[0\].*2 rows for 3 queries"):
        sharded_contrastive_diffusion_loss(**{**arguments, "positives": None})
    with pytest.raises(ValueError, match="positives holds -2, but all shards of the bank have 2 rows together"):
        sharded_contrastive_diffusion_loss(**{**arguments, "positives": [torch.tensor([0, 1, -2])]})
    with pytest.raises(ValueError, match="bank_groups is None while query_groups is given"):
        sharded_contrastive_diffusion_loss(**arguments, query_groups=torch.arange(3))
    with pytest.raises(ValueError, match="temperature is 0"):
        sharded_contrastive_diffusion_loss(**{**arguments, "temperature": 0.0})
    for name, value, said in (
        ("bank_weights", 0.5, "bank_weights is 0.5: expected a sequence"),
        ("bank_weights", [torch.ones(2)], r"bank_weights\[0\] has shape \[2\]: expected one number"),
        ("normalize", [], "normalize is list: expected True or False"),
        ("c_skip", torch.ones(3).to_sparse(), "c_skip has the layout torch.sparse_coo"),
    ):
        with pytest.raises(ValueError, match=said):
            sharded_contrastive_diffusion_loss(**{**arguments, name: value})


def test_a_weight_that_float32_cannot_hold_is_no_foreign_error() -> None:
    arguments = make(3, [2], (5,))
    arguments["prediction"].requires_grad_()
    out = sharded_contrastive_diffusion_loss(**arguments, bank_weights=[1e300])
    assert not out.loss.isfinite()


@pytest.mark.parametrize("name", ["noisy", "c_skip", "c_out", "contrastive_weights"])
def test_without_banks_what_makes_x0_has_no_say(name: str) -> None:
    arguments = make(3, [], (5,)) | {"contrastive_weights": torch.ones(3)}
    arguments["prediction"].requires_grad_()
    arguments[name] = torch.full_like(arguments[name], torch.nan)
    out = sharded_contrastive_diffusion_loss(**arguments)
    out.loss.backward()
    assert out.loss.isfinite() and arguments["prediction"].grad.isfinite().all()
