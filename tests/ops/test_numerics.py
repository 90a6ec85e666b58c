"""The hazards of the op: huge logits, near-uniform and saturated softmaxes, vanishing signal. The bar: the
gradient's error against float64 is at most twice that of eager PyTorch in the same dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import BACKENDS, BACKENDS_BUT_SLOW, HAZARDS, eager, error, make, run, to_double

from contrastive_i2v.ops import contrastive_diffusion_loss

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def lower(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The latents and banks in `dtype`; the coefficients stay float32."""
    latents = {name: arguments[name].to(dtype) for name in ("prediction", "noisy", "target")}
    return arguments | latents | {"banks": [bank.to(dtype) for bank in arguments["banks"]]}


@pytest.mark.parametrize("backend", BACKENDS_BUT_SLOW)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HAZARDS)
def test_gradient_error_is_at_most_twice_eagers(backend: str, name: str, dtype: torch.dtype, normalize: bool) -> None:
    arguments = lower(HAZARDS[name](), dtype) | {"normalize": normalize}
    if normalize:
        arguments["temperature"] = 0.002 if name == "saturated" else 0.07
    _, truth = run(to_double(arguments), "reference")
    out, gradient = run(arguments, backend)
    _, plain = eager(arguments)
    assert out.loss.isfinite()
    assert (out.contrastive >= 0).all()
    bar = 2 * error(plain, truth)
    assert not error(gradient, truth) > bar  # eager in float16 overflows: its bar is NaN
    assert error(gradient, truth) < {torch.float32: 2e-3, torch.bfloat16: 1e-2, torch.float16: 5e-2}[dtype]


@pytest.mark.parametrize("backend", BACKENDS_BUT_SLOW)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalize", [False, True])
def test_finite_at_every_timestep_of_stable_diffusions_schedule(backend: str, dtype: Any, normalize: bool) -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1000, 4096, generator=generator)  # norm 64
    noise = torch.randn(1000, 4096, generator=generator)
    prediction = (noise + torch.randn(1000, 4096, generator=generator)).to(dtype)  # a bad network: the worst gain
    arguments = {
        "prediction": prediction,
        "noisy": (abar.sqrt()[:, None] * clean + (1 - abar).sqrt()[:, None] * noise).to(dtype),
        "target": noise.to(dtype),
        "c_skip": abar.rsqrt().float(),
        "c_out": (-((1 - abar) / abar).sqrt()).float(),
        "banks": [clean[::10].to(dtype)],
        "positives": [torch.arange(1000) // 10],
        "temperature": 0.07 if normalize else 1.0,
        "normalize": normalize,
    }
    out, gradient = run(arguments, backend)
    truth, expected = run(to_double(arguments), "reference")
    assert out.loss.isfinite()
    assert gradient.isfinite().all()
    assert (out.contrastive >= 0).all()
    assert error(out.contrastive, truth.contrastive) < 1e-4
    assert expected.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_cosine_is_finite_at_any_finite_coefficient(backend: str) -> None:
    arguments = make(4, [6], [32]) | {"normalize": True, "temperature": 0.07}
    arguments |= {
        "c_skip": torch.tensor([1e25, 1e30, 0.0, 1e-30]),
        "c_out": torch.tensor([-1e25, -3e29, 0.0, 1e-30]),
    }
    out, gradient = run(arguments, backend)
    truth, expected = run(to_double(arguments), "reference")
    assert error(out.contrastive, truth.contrastive) < 1e-5
    assert gradient.isfinite().all()
    assert error(gradient, expected) < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1e-6, 1e-2, 1.0, 1e6])
def test_cross_entropy_is_never_negative(backend: str, temperature: float) -> None:
    arguments = make(64, [64], [128], seed=5) | {"temperature": temperature, "positives": None}
    arguments["banks"] = [
        arguments["c_skip"][:, None] * arguments["noisy"] + arguments["c_out"][:, None] * arguments["prediction"]
    ]
    out, gradient = run(arguments, backend)  # the positive is the largest logit, by far or hardly
    assert (out.contrastive >= 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_saturated_row_keeps_its_small_loss_and_gradient(backend: str) -> None:
    """exp(-25) is lost beside 1 in float32, so `1 - p` and `log(1 + rest)` must not be formed."""
    arguments = {
        "prediction": torch.tensor([[1.0]]),
        "noisy": torch.zeros(1, 1),
        "target": torch.tensor([[1.0]]),
        "c_skip": torch.zeros(1),
        "c_out": torch.ones(1),
        "banks": [torch.tensor([[25.0], [0.0]])],
        "bank_weights": [1.0],
    }
    out, gradient = run(arguments, backend)
    expected = torch.tensor(-25.0).exp()
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, -25 * expected.reshape(1, 1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shifting_a_bank_by_a_constant_changes_nothing(backend: str) -> None:
    arguments = make(9, [40], [252], seed=6)
    shifted = arguments | {"banks": [arguments["banks"][0] + torch.linspace(-2, 2, 252)]}
    out, gradient = run(arguments, backend)
    shifted_out, shifted_gradient = run(shifted, backend)
    assert error(shifted_out.loss, out.loss) < 1e-5
    assert error(shifted_gradient, gradient) < 1e-4
    assert not torch.equal(shifted["banks"][0], arguments["banks"][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_small_probability_is_skipped(backend: str) -> None:
    """With 20,000 candidates that share a mean each p is 5e-5; a threshold on p would drop the gradient."""
    arguments = make(2, [20_000], [16], seed=7) | {"temperature": 50.0}
    _, gradient = run(arguments | {"mse_weights": torch.zeros(2)}, backend)
    _, truth = run(to_double(arguments | {"mse_weights": torch.zeros(2)}), "reference")
    assert error(gradient, truth) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_poisoned_memory_is_never_read(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory full of NaN gives the same answer: nothing reads what it did not write."""
    arguments = make(5, [13, 6], [130])
    _, expected = run(arguments, backend)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        poison = [torch.full((size,), float("nan")) for size in (5 * 130, 13 * 130, 19 * 256 * 5) for _ in range(8)]
        del poison
        _, gradient = run(arguments, backend)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(gradient, expected)


def test_output_is_the_named_tuple_of_the_contract() -> None:
    out = contrastive_diffusion_loss(**make(2, [3], [4]))
    assert out._fields == ("loss", "mse", "contrastive")
    assert out.loss.shape == out.mse.shape == ()
    assert out.contrastive.shape == (1,)
