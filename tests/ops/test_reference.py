"""The reference against autograd over the written-out equations and against finite differences."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from problems import eager, error, make, run

from contrastive_i2v.ops import contrastive_diffusion_loss


@pytest.mark.parametrize("normalize", [False, True])
def test_agrees_with_autograd_over_the_equations(normalize: bool) -> None:
    arguments = make(5, [13, 6], [4, 3, 2], dtype=torch.float64) | {"normalize": normalize}
    out, gradient = run(arguments, "reference")
    loss, expected = eager(arguments)
    assert error(out.loss, loss) < 1e-14
    assert error(gradient, expected) < 1e-13


@pytest.mark.parametrize("normalize", [False, True])
def test_options_agree_with_a_loop_over_queries(normalize: bool) -> None:
    a = make(7, [5, 9], [3, 4], dtype=torch.float64, options=True, seed=3) | {"normalize": normalize}
    out, gradient = run(a, "reference")
    prediction = a["prediction"].clone().requires_grad_()
    mse, contrastive = prediction.new_zeros(()), []
    for i in range(7):
        mse = mse + a["mse_weights"][i] * (prediction[i] - a["target"][i]).square().mean() / 7
    for bank, positives, groups in zip(a["banks"], a["positives"], a["bank_groups"], strict=True):
        total = prediction.new_zeros(())
        for i, positive in enumerate(positives.tolist()):
            if positive < 0:
                continue
            x0 = (a["c_skip"][i] * a["noisy"][i] + a["c_out"][i] * prediction[i]).flatten()
            logits = {}
            for j, z in enumerate(bank.flatten(1)):
                if j == positive or groups[j] != a["query_groups"][i]:
                    logits[j] = x0 @ z / (x0.norm() * z.norm() if normalize else 1) / a["temperature"]
            cross_entropy = torch.stack(list(logits.values())).logsumexp(0) - logits[positive]
            total = total + a["contrastive_weights"][i] * cross_entropy / 7
        contrastive.append(total)
    loss = mse + sum(weight * one for weight, one in zip(a["bank_weights"], contrastive, strict=True))
    loss.backward()
    torch.testing.assert_close(out.mse, mse)
    torch.testing.assert_close(out.contrastive, torch.stack(contrastive))
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(gradient, prediction.grad)


@pytest.mark.parametrize(("normalize", "options"), list(itertools.product([False, True], repeat=2)))
def test_gradcheck_to_prediction_banks_and_temperature(normalize: bool, options: bool) -> None:
    arguments = make(4, [5, 3], [2, 3], dtype=torch.float64, options=options) | {"normalize": normalize}
    prediction, banks = (
        arguments["prediction"].requires_grad_(),
        [b.requires_grad_() for b in arguments["banks"]],
    )
    temperature = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    def loss(prediction: Any, temperature: Any, *banks: Any) -> Any:
        given = arguments | {"prediction": prediction, "banks": banks, "temperature": temperature}
        return contrastive_diffusion_loss(**given).loss

    assert torch.autograd.gradcheck(loss, (prediction, temperature, *banks))


def test_only_the_asked_bank_gets_a_gradient_in_its_own_dtype_and_shape() -> None:
    arguments = make(4, [5, 3], [2, 3])
    arguments["banks"][1] = arguments["banks"][1].bfloat16().requires_grad_()
    contrastive_diffusion_loss(**arguments).loss.backward()
    assert arguments["banks"][0].grad is None
    assert arguments["banks"][1].grad.dtype == torch.bfloat16
    assert arguments["banks"][1].grad.shape == (3, 2, 3)
    assert arguments["banks"][1].grad.abs().sum() > 0


def test_no_second_derivative() -> None:
    arguments = make(2, [3], [4], dtype=torch.float64)
    prediction = arguments["prediction"].requires_grad_()
    loss = contrastive_diffusion_loss(**arguments).loss
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, prediction, create_graph=True)


def test_float32_maths_ignores_a_lowered_matmul_precision() -> None:
    arguments = make(5, [13], [252])
    _, expected = run(arguments, "reference")
    torch.set_float32_matmul_precision("medium")
    try:
        _, gradient = run(arguments, "reference")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(gradient, expected)
