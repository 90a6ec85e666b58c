"""The CUDA kernel without a GPU: its own source, every thread of it, run on the CPU and held against the reference.

What this cannot see is the chip itself: speed, the meaning of the instructions in chip.cuh, and races that no
order of the threads which is tried here shows.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import emulator
import pytest
import torch
from problems import HAZARDS, eager, error, make, run, to_double

pytestmark = [pytest.mark.emulator, pytest.mark.skipif(bool(emulator.why_not()), reason=emulator.why_not())]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHARED = emulator.HOPPER[0]
# shape, resident CTAs in clusters of 1, 2, 4, 8; together they take every path of the kernel (see below)
CASES = {
    "one query": ((1, [7], [33]), (12, 12, 12, 16)),
    "ragged, unaligned": ((33, [40, 35], [257]), (12, 12, 12, 16)),
    "no clusters": ((40, [50, 30], [200]), (16, 0, 0, 0)),
    "clusters of 8": ((20, [300], [4, 8, 16]), (0, 0, 0, 16)),
    "two barriers in clusters": ((70, [61, 90], [320]), (0, 0, 24, 0)),
    "more than a tile of rows and columns": ((150, [300], [40]), (0, 2, 0, 0)),
    "wide slices": ((17, [33], [500]), (2, 2, 0, 0)),
    "no bank": ((3, [], [40]), (4, 4, 0, 0)),
    "many banks": ((9, [5, 40, 17, 1, 2, 3, 16, 9], [96]), (4, 4, 4, 4)),
}


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return emulator.build(tmp_path_factory.mktemp("emulator"))


def emulate(kernel: ctypes.CDLL, arguments: dict[str, Any], ctas: Any = (12, 12, 12, 16), **more: Any) -> Any:
    result = emulator.run(kernel, arguments, limits=(SHARED, ctas), **more)
    assert result is not None, "the problem does not fit"
    return result


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
def test_agrees_with_float64(kernel: ctypes.CDLL, name: str, dtype: torch.dtype, normalize: bool) -> None:
    shape, ctas = CASES[name]
    if dtype == torch.float32 and name == "wide slices":
        ctas = (4, 4, 0, 0)  # a float slice is at most 128 wide
    for options in (False, True):
        arguments = make(*shape, dtype=dtype, options=options) | {"normalize": normalize}
        if normalize:
            arguments["temperature"] = 0.07
        out = emulate(kernel, arguments, ctas)
        truth, expected = run(to_double(arguments), "reference")
        gradient = out.gradient.reshape(expected.shape)
        # float: only the order of the sums differs. 16-bit: x0 and the coefficients are rounded, as eager does.
        loss, grad = {torch.float32: (1e-6, 1e-6), torch.bfloat16: (2e-3, 4e-3), torch.float16: (2e-4, 3e-4)}[dtype]
        assert error(out.mse, truth.mse) < 1e-6
        assert error(out.loss, truth.loss) < loss
        if shape[1]:
            assert error(out.contrastive, truth.contrastive) < 5 * loss
        assert error(gradient, expected) < grad
        assert (out.contrastive >= 0).all()


def test_the_cases_take_every_path(kernel: ctypes.CDLL) -> None:
    seen = []
    for shape, ctas in CASES.values():
        seen.append(emulate(kernel, make(*shape, dtype=torch.bfloat16), ctas).chosen)
    assert {one.cluster for one in seen} >= {1, 2, 4, 8}
    assert {(one.cluster > 1, one.one_barrier) for one in seen} == {(a, b) for a in (False, True) for b in (0, 1)}
    assert {one.last for one in seen} == {0, 1}
    assert any(one.row_blocks > 1 for one in seen)
    assert {one.unit_pairs for one in seen} == {1, 2, 4}
    assert {one.slice_width for one in seen} >= {32, 256}
    shape, ctas = CASES["more than a tile of rows and columns"]
    chosen = emulate(kernel, make(*shape, dtype=torch.bfloat16), ctas).chosen
    assert (chosen.row_blocks, chosen.cluster) == (1, 2)


@pytest.mark.parametrize("name", ["ragged, unaligned", "no clusters", "clusters of 8", "two barriers in clusters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_order_of_the_threads_changes_a_bit(kernel: ctypes.CDLL, name: str, dtype: torch.dtype) -> None:
    """A missing barrier shows here: another order of warps and lanes would read what is not there yet."""
    shape, ctas = CASES[name]
    arguments = make(*shape, dtype=dtype, options=True) | {"normalize": True, "temperature": 0.07}
    first = emulate(kernel, arguments, ctas)
    for seed in (1, 2, 3):
        again = emulate(kernel, arguments, ctas, seed=seed)
        assert torch.equal(first.loss, again.loss)
        assert torch.equal(first.contrastive, again.contrastive)
        assert torch.equal(first.gradient, again.gradient)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HAZARDS)
@pytest.mark.parametrize("alone", [False, True])
def test_gradient_error_is_at_most_twice_eagers(
    kernel: ctypes.CDLL, name: str, dtype: torch.dtype, normalize: bool, alone: bool
) -> None:
    """`alone`: the target is the prediction, so only the contrastive gradient is left to be judged."""
    arguments = HAZARDS[name]()
    latents = {key: arguments[key].to(dtype) for key in ("prediction", "noisy", "target")}
    arguments |= latents | {"banks": [bank.to(dtype) for bank in arguments["banks"]], "normalize": normalize}
    if alone:
        arguments["target"] = arguments["prediction"]
    if normalize:
        arguments["temperature"] = 0.002 if name == "saturated" else 0.07
    _, truth = run(to_double(arguments), "reference")
    out = emulate(kernel, arguments)
    _, plain = eager(arguments)
    assert out.loss.isfinite()
    assert (out.contrastive >= 0).all()
    assert not error(out.gradient, truth) > 2 * error(plain, truth)  # eager in float16 overflows: its bar is NaN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", [False, True])
def test_finite_at_every_timestep_of_stable_diffusions_schedule(
    kernel: ctypes.CDLL, dtype: torch.dtype, normalize: bool
) -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)[::40]
    generator = torch.Generator().manual_seed(0)
    clean, noise, wrong = (torch.randn(25, 1024, generator=generator) for _ in range(3))
    arguments = {
        "prediction": (noise + wrong).to(dtype),
        "noisy": (abar.sqrt()[:, None] * 2 * clean + (1 - abar).sqrt()[:, None] * noise).to(dtype),
        "target": noise.to(dtype),
        "c_skip": abar.rsqrt().float(),
        "c_out": (-((1 - abar) / abar).sqrt()).float(),
        "banks": [(2 * clean).to(dtype)],  # norm 64, so dot products leave float16's range
        "positives": [(torch.arange(25) + 1) % 25],  # the wrong row: losses in the tens of thousands
        "temperature": 0.07 if normalize else 1.0,
        "normalize": normalize,
    }
    out = emulate(kernel, arguments, (32, 32, 32, 32))
    truth, _ = run(to_double(arguments), "reference")
    assert out.gradient.isfinite().all()
    assert (out.contrastive >= 0).all()
    assert error(out.contrastive, truth.contrastive) < 2e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_float16_and_any_finite_coefficient(kernel: ctypes.CDLL, dtype: torch.dtype) -> None:
    arguments = make(4, [6], [32], dtype=dtype) | {"normalize": True, "temperature": 0.07}
    arguments |= {"c_skip": torch.tensor([1e25, 1e30, 0.0, 1e-30]), "c_out": torch.tensor([-1e25, -3e29, 0.0, 1e-30])}
    truth, expected = run(to_double(arguments), "reference")
    out = emulate(kernel, arguments)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert error(out.contrastive, truth.contrastive) < bound
    assert error(out.gradient, expected) < bound
    arguments = make(4, [6], [32], dtype=dtype) | {"temperature": 1e6}
    arguments["noisy"][:] = 65504.0
    assert emulate(kernel, arguments).gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [1e-6, 1e-2, 1.0, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_is_never_negative(kernel: ctypes.CDLL, temperature: float, dtype: torch.dtype) -> None:
    arguments = make(24, [24], [128], seed=5) | {"temperature": temperature, "positives": None}
    x0 = arguments["c_skip"][:, None] * arguments["noisy"] + arguments["c_out"][:, None] * arguments["prediction"]
    arguments |= {name: arguments[name].to(dtype) for name in ("prediction", "noisy", "target")}
    out = emulate(kernel, arguments | {"banks": [x0.to(dtype)]})
    assert (out.contrastive >= 0).all()
    assert out.gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saturated_row_keeps_its_small_loss_and_gradient(kernel: ctypes.CDLL, dtype: torch.dtype) -> None:
    """exp(-25) is lost beside 1 in float32, and below float16's smallest number."""
    arguments = {
        "prediction": torch.tensor([[1.0]], dtype=dtype),
        "noisy": torch.zeros(1, 1, dtype=dtype),
        "target": torch.tensor([[1.0]], dtype=dtype),
        "c_skip": torch.zeros(1),
        "c_out": torch.ones(1),
        "banks": [torch.tensor([[25.0], [0.0]], dtype=dtype)],
        "bank_weights": [1.0],
    }
    out = emulate(kernel, arguments)
    expected = torch.tensor(-25.0).exp()
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=0)
    bound = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.gradient.float(), -25 * expected.reshape(1, 1), rtol=bound, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["prediction", "noisy", "target", "banks", "c_skip", "c_out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_reaches_the_loss(kernel: ctypes.CDLL, name: str, value: float, dtype: torch.dtype) -> None:
    """Also from a candidate that the softmax ignores, for a query without a positive."""
    arguments = make(3, [5], [40], dtype=dtype) | {"positives": [torch.tensor([-1, -1, -1])]}
    tensor = arguments["banks"][0] if name == "banks" else arguments[name]
    tensor.view(-1)[-1] = value
    assert not emulate(kernel, arguments, gradient=False).loss.isfinite()


def test_bad_positive_or_temperature_on_the_device_makes_the_loss_nan(kernel: ctypes.CDLL) -> None:
    good = make(3, [5], [40])
    for wrong in (5, -2, 2**40):
        out = emulate(kernel, good | {"positives": [torch.tensor([0, wrong, 1])]})
        assert out.loss.isnan()
        assert out.mse.isfinite()
    for wrong in (0.0, -1.0, math.inf, math.nan):
        assert emulate(kernel, good | {"temperature": torch.tensor(wrong)}).loss.isnan()
    tensor = emulate(kernel, good | {"temperature": torch.tensor(2.0)})
    assert torch.equal(tensor.gradient, emulate(kernel, good | {"temperature": 2.0}).gradient)


@pytest.mark.parametrize("dtype", DTYPES)
def test_defaults_zero_rows_and_no_gradient(kernel: ctypes.CDLL, dtype: torch.dtype) -> None:
    arguments = make(4, [6], [40], dtype=dtype) | {"normalize": True, "positives": [torch.arange(4)]}
    for name in ("prediction", "noisy", "target"):
        arguments[name][0] = 0
    arguments["banks"][0][5] = 0
    out = emulate(kernel, arguments)
    truth, expected = run(to_double(arguments), "reference")
    assert torch.equal(out.gradient[0].float(), torch.zeros(40))
    assert error(out.gradient, expected) < {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 3e-4}[dtype]
    assert torch.equal(emulate(kernel, arguments | {"positives": None}).gradient, out.gradient)
    assert torch.equal(emulate(kernel, arguments, gradient=False).loss, out.loss)


def test_no_small_probability_is_skipped(kernel: ctypes.CDLL) -> None:
    arguments = make(2, [900], [16], seed=7) | {"temperature": 50.0, "mse_weights": torch.zeros(2)}
    _, truth = run(to_double(arguments), "reference")
    assert error(emulate(kernel, arguments).gradient, truth) < 1e-5


@pytest.mark.parametrize("limits", [emulator.HOPPER, emulator.AMPERE])
@pytest.mark.parametrize("element_size", [2, 4])
def test_plans_stay_within_the_device(
    kernel: ctypes.CDLL, limits: tuple[int, tuple[int, ...]], element_size: int
) -> None:
    shared, ctas = limits
    fitting = 0
    for queries in (1, 16, 33, 100, 256, 400, 4096, 10**9):
        for candidates in (0, 16, 48, 512, 8192, 10**9):
            for elements in (1, 33, 4096, 16384, 10**9):
                size, plan = emulator.plan(kernel, queries, candidates, elements, 2, element_size, limits)
                if size < 0:
                    continue
                fitting += 1
                assert plan.shared_bytes <= shared
                assert plan.row_blocks * plan.slices <= ctas[int(math.log2(plan.cluster))]
                assert plan.slices * plan.slice_width >= elements
                assert plan.slices % plan.cluster == 0
                assert plan.row_blocks * plan.last >= queries
                assert size < 1 << 26
    assert fitting > 20


@pytest.mark.parametrize("batch", [16, 256])
def test_the_goal_sizes_fit_a_hopper_gpu(kernel: ctypes.CDLL, batch: int) -> None:
    size, plan = emulator.plan(kernel, batch, 2 * batch, 4096, 2, 2, emulator.HOPPER)
    assert size > 0
    assert plan.row_blocks * plan.slices == 128
    assert plan.cluster > 1
    assert plan.one_barrier == (batch == 16)


def test_what_does_not_fit_is_refused(kernel: ctypes.CDLL) -> None:
    assert emulator.run(kernel, make(3, [5], [40]), limits=(1000, (12, 12, 12, 12))) is None
    assert emulator.run(kernel, make(3, [5], [4000]), limits=(SHARED, (8, 8, 8, 8))) is None
    assert emulator.run(kernel, make(3, [2] * 9, [40]), limits=emulator.HOPPER) is None
