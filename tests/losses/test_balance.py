"""The weight that balances gradients, against autograd in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import ContrastiveDiffusionLoss

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
SHAPE = (5, 4, 3, 7)
BANKS = {"target": 0.7, "input": None}
OPTIONS = {"banks": BANKS, "min_snr_gamma": 5.0, "temperature": 0.2}


def batch(seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> dict[str, Any]:
    schedule, generator = NoiseSchedule.from_config(SD), torch.Generator().manual_seed(seed)
    clean, noise, source, error = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    timesteps = schedule.sample_timesteps(SHAPE[0], generator)
    made = {
        "prediction": noise + scale * error,
        "noisy_latents": schedule.add_noise(clean, noise, timesteps),
        "clean_latents": clean,
        "noise": noise,
    }
    made = {name: value.to(dtype) for name, value in made.items()}
    made["prediction"].requires_grad_()
    banks = {"input": source.to(dtype), "target": clean.to(dtype)}
    return {**made, "timesteps": timesteps, "banks": banks}


def parts(arguments: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise loss, its gradient, the contrastive terms and theirs, of losses without a balance."""
    whole = ContrastiveDiffusionLoss(SD, **OPTIONS, backend="reference")(**arguments)
    noise = ContrastiveDiffusionLoss(SD, **{**OPTIONS, "banks": {}}, backend="reference")(**arguments)
    gradients = [torch.autograd.grad(out.loss, arguments["prediction"])[0] for out in (noise, whole)]
    return noise.mse, gradients[0], (whole.loss - noise.loss).detach(), gradients[1] - gradients[0]


def test_the_terms_gradient_is_the_ratio_of_the_noise_losss() -> None:
    loss, averages = ContrastiveDiffusionLoss(SD, **OPTIONS, balance=0.3).double(), torch.zeros(2, dtype=torch.float64)
    capped: list[bool] = []
    for step, scale in enumerate((1.0, 0.1, 3.0, 0.3)):
        arguments = batch(step, scale=scale)
        mse, noise, terms, contrastive = parts(arguments)
        squares = torch.stack([noise.square().sum(), contrastive.square().sum()])
        averages = 0.99 * averages + 0.01 * squares
        usual = averages / (1 - 0.99 ** (step + 1))
        capped.append(bool(squares[1] > usual[1]))
        weight = 0.3 * (usual[0] / torch.maximum(usual[1], squares[1])).sqrt()
        out = loss(**arguments)
        (gradient,) = torch.autograd.grad(3 * out.loss, arguments["prediction"])
        torch.testing.assert_close(out.balance_weight, weight, rtol=1e-10, atol=0)
        torch.testing.assert_close(out.loss.detach(), mse + weight * terms, rtol=1e-10, atol=0)
        torch.testing.assert_close(gradient, 3 * (noise + weight * contrastive), rtol=1e-9, atol=1e-13)
        assert (weight * contrastive).norm() <= 0.3 * usual[0].sqrt() * (1 + 1e-9)
        if step == 0:
            assert (weight * contrastive).norm() == pytest.approx(0.3 * float(noise.norm()))
    assert {True, False} <= set(capped[1:])


def test_evaluating_leaves_the_weight_alone_and_its_state_goes_on() -> None:
    loss = ContrastiveDiffusionLoss(SD, **OPTIONS, balance=0.3)
    first = loss(**batch(0, torch.float32))
    with torch.no_grad():
        seen = loss(**batch(1, torch.float32))
    loss.eval()
    again = loss(**batch(0, torch.float32))
    assert seen.balance_weight == again.balance_weight == first.balance_weight and again.loss == first.loss
    other = ContrastiveDiffusionLoss(SD, **OPTIONS, balance=0.3)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    loss.train()
    assert torch.equal(loss(**batch(2, torch.float32)).loss, other(**batch(2, torch.float32)).loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_weight_of_double(dtype: torch.dtype) -> None:
    half = batch(0, dtype)
    double = {name: value.detach().double() for name, value in half.items() if torch.is_tensor(value)}
    double["timesteps"] = half["timesteps"]
    double["banks"] = {name: bank.double() for name, bank in half["banks"].items()}
    double["prediction"].requires_grad_()
    outs = [ContrastiveDiffusionLoss(SD, **OPTIONS, balance=1.0)(**each) for each in (half, double)]
    assert outs[0].balance_weight == pytest.approx(float(outs[1].balance_weight), rel=1e-3)
    scale = 2.0**16
    (small,), (truth,) = (
        torch.autograd.grad(factor * out.loss, each["prediction"])
        for factor, out, each in zip((scale, 1.0), outs, (half, double), strict=True)
    )
    assert small.dtype == dtype
    assert (small.double() / scale - truth).norm() < 4 * torch.finfo(dtype).eps * truth.norm()


def test_nan_and_silent_terms_leave_it_finite() -> None:
    loss = ContrastiveDiffusionLoss(SD, **{**OPTIONS, "banks": {"target": 0.7}}, balance=0.3)
    loss.max_timestep = -1  # no timestep has contrastive terms
    silent = loss(**batch(0))
    assert silent.balance_weight == 0 and silent.loss == silent.mse
    loss.max_timestep = None
    assert loss(**batch(0)).balance_weight > 0
    before, broken = copy.deepcopy(loss.state_dict()), batch(1)
    broken["noisy_latents"][0, 0, 0, 0] = torch.nan
    assert loss(**broken).loss.isnan() and torch.equal(
        loss.state_dict()["balance.averages"], before["balance.averages"]
    )
    assert loss(**batch(1)).loss.isfinite()


@pytest.mark.parametrize(("banks", "balance"), [({"target": 0.2}, 0.0), ({"target": 0.2}, float("nan")), ({}, 1.0)])
def test_bad_values_are_named(banks: dict[str, float], balance: float) -> None:
    with pytest.raises(InputError, match=f"balance={balance}"):
        ContrastiveDiffusionLoss(SD, banks=banks, balance=balance)


def test_a_bank_that_learns_is_refused() -> None:
    arguments = batch(0)
    arguments["banks"]["target"].requires_grad_()
    with pytest.raises(InputError, match="detach"):
        ContrastiveDiffusionLoss(SD, banks={"target": 0.2}, balance=1.0)(**arguments)
