"""The op's contract on every backend that runs here: options, dtypes, bad input, autograd, tracing."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from problems import BACKENDS, BACKENDS_BUT_SLOW, error, make, run, to_double
from torch import Tensor

from contrastive_i2v.ops import contrastive_diffusion_loss
from contrastive_i2v.ops.reference import diffusion_loss_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# one query, ragged, a slice and a bit, and (with 300 queries) past the small regime and its strips and blocks
SHAPES = [
    (1, [7], [33]),
    (5, [13, 6], [252]),
    (4, [5], [4, 3, 7]),
    (33, [40, 35], [257]),
    (300, [1100, 211], [21]),
]


@pytest.mark.parametrize("backend", BACKENDS_BUT_SLOW)
@pytest.mark.parametrize(("shape", "dtype"), list(itertools.product(SHAPES, DTYPES)))
@pytest.mark.parametrize(("normalize", "options"), list(itertools.product([False, True], repeat=2)))
def test_agrees_with_float64(
    backend: str, shape: Any, dtype: Any, normalize: bool, options: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI2V_CPU_BF16", "off")  # which may round x0; test_cpu_bf16.py holds it to eager's error
    queries, candidates, latent = shape
    arguments = make(queries, candidates, latent, dtype=dtype, options=options) | {"normalize": normalize}
    if normalize:
        arguments["temperature"] = 0.07
    out, gradient = run(arguments, backend)
    truth, expected = run(to_double(arguments), "reference")
    # The inputs are exact in both; what is left is float32 maths and one rounding of the gradient.
    rounding = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    assert out.loss.dtype == out.mse.dtype == out.contrastive.dtype == torch.float32
    assert error(out.loss, truth.loss) < 1e-6
    assert error(out.mse, truth.mse) < 1e-6
    assert error(out.contrastive, truth.contrastive) < 1e-6
    assert gradient.dtype == dtype
    assert error(gradient, expected) < 2e-6 + rounding
    weights = arguments.get("bank_weights", [1 / expected[0].numel()] * len(candidates))
    torch.testing.assert_close(out.loss, out.mse + (out.contrastive * torch.tensor(weights)).sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes_channels_last_and_no_gradient(backend: str) -> None:
    arguments = make(3, [4], [4, 5, 6])
    arguments["prediction"] = arguments["prediction"].bfloat16().to(memory_format=torch.channels_last)
    arguments["banks"] = [arguments["banks"][0].half()]
    out, gradient = run(arguments, backend)
    truth, expected = run(to_double(arguments), "reference")
    assert error(out.loss, truth.loss) < 1e-6
    assert error(gradient, expected) < 2**-8
    with torch.no_grad():
        quiet = contrastive_diffusion_loss(**arguments, backend=backend)
    assert torch.equal(quiet.loss, out.loss)
    assert not quiet.loss.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_defaults(backend: str) -> None:
    arguments = make(4, [4, 6], [10])
    del arguments["positives"]
    given = arguments | {
        "positives": [torch.arange(4)] * 2,
        "bank_weights": [0.1, 0.1],
        "mse_weights": torch.ones(4),
        "contrastive_weights": torch.ones(4),
    }
    assert torch.equal(run(arguments, backend)[1], run(given, backend)[1])
    half = arguments | {"positives": [None, torch.arange(4)]}
    assert torch.equal(run(half, backend)[1], run(given, backend)[1])
    groups = {"query_groups": torch.zeros(4).long(), "bank_groups": [None, torch.ones(6).long()]}
    assert torch.equal(run(arguments | groups, backend)[1], run(given, backend)[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_bank_leaves_the_diffusion_loss(backend: str) -> None:
    arguments = make(3, [], [8])
    out, gradient = run(arguments, backend)
    difference = arguments["prediction"] - arguments["target"]
    assert out.contrastive.shape == (0,)
    torch.testing.assert_close(out.loss, difference.square().mean())
    torch.testing.assert_close(gradient, 2 * difference / difference.numel())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", ["noisy", "c_skip", "c_out", "contrastive_weights"])
def test_without_banks_what_makes_x0_has_no_say(backend: str, normalize: bool, name: str) -> None:
    arguments = make(3, [], [9], options=True) | {"normalize": normalize, "positives": []}
    loss, expected = run(arguments, backend)
    broken = arguments | {name: torch.full_like(arguments[name], torch.nan)}
    out, gradient = run(broken, backend)
    assert torch.equal(out.loss, loss.loss) and torch.equal(gradient, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_without_positive_has_no_contrastive_term(backend: str) -> None:
    arguments = make(3, [5], [8]) | {"positives": [torch.tensor([-1, -1, -1])]}
    out, gradient = run(arguments, backend)
    assert out.contrastive.item() == 0
    torch.testing.assert_close(gradient, run(arguments | {"banks": [], "positives": []}, backend)[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_excluding_a_row_is_removing_it(backend: str) -> None:
    arguments = make(2, [4], [9]) | {"positives": [torch.tensor([0, 3])]}
    groups = {"query_groups": torch.tensor([7, 7]), "bank_groups": [torch.tensor([7, 1, 7, 7])]}
    out, gradient = run(arguments | groups, backend)
    # query 0 keeps rows 0 (its positive) and 1; query 1 keeps rows 1 and 3
    losses = []
    for i, rows in enumerate(([0, 1], [3, 1])):
        one = {name: arguments[name][i : i + 1] for name in ("prediction", "noisy", "target", "c_skip", "c_out")}
        banks = [arguments["banks"][0][rows]]
        losses.append(contrastive_diffusion_loss(**one, banks=banks, temperature=3.0, backend=backend).loss)
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_rows_under_cosine(backend: str) -> None:
    arguments = make(2, [3], [6]) | {"normalize": True, "positives": [torch.tensor([0, 1])]}
    for name in ("prediction", "noisy", "target"):
        arguments[name][0] = 0
    arguments["banks"][0][2] = 0
    out, gradient = run(arguments, backend)
    assert out.loss.isfinite()
    assert torch.equal(gradient[0], torch.zeros(6))
    alone = {name: arguments[name][:1] for name in ("prediction", "noisy", "target", "c_skip", "c_out")}
    only = contrastive_diffusion_loss(**alone, banks=arguments["banks"], normalize=True, backend=backend)
    torch.testing.assert_close(only.contrastive[0], torch.tensor(3.0).log())  # all cosines are 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_bitwise_equal(backend: str) -> None:
    for arguments in (make(33, [40, 35], [257]), make(300, [500], [64], options=True)):
        first, second = run(arguments, backend), run(arguments, backend)
        assert torch.equal(first[0].loss, second[0].loss)
        assert torch.equal(first[1], second[1])


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the extension")
def test_small_regime_does_not_depend_on_the_number_of_threads() -> None:
    arguments = make(33, [40, 35], [1000])
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(arguments, "cpu")[1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_keeps_nothing_of_size_queries_by_candidates(backend: str) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    arguments = make(40, [50, 60], [9])
    arguments["prediction"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        contrastive_diffusion_loss(**arguments, backend=backend)
    assert sum(tensor.numel() for tensor in kept) == 40 * 9  # the gradient alone


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_scales_by_the_incoming_gradient(backend: str) -> None:
    arguments = make(3, [4], [4096])
    _, gradient = run(arguments, backend)
    for dtype in (torch.float16, torch.bfloat16):
        prediction = arguments["prediction"].to(dtype).requires_grad_()
        out = contrastive_diffusion_loss(**arguments | {"prediction": prediction}, backend=backend)
        (out.loss * 65536 / 3).backward()  # 65536 is a GradScaler's first scale; a third is not exact in bfloat16
        # float16 would have lost most of a gradient of 1e-5 had it been rounded before it was scaled
        reference = run(to_double(arguments | {"prediction": prediction}), "reference")[1] * 65536 / 3
        assert prediction.grad is not None
        assert error(prediction.grad, reference) < (2**-11 if dtype == torch.float16 else 2**-8)
    assert not out.mse.requires_grad
    assert not out.contrastive.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    for arguments in (make(5, [13, 6], [252], dtype=dtype), make(200, [300], [64])):
        out, gradient = run(arguments, backend)
        with torch.autocast("cpu", dtype=dtype):
            cast_out, cast_gradient = run(arguments, backend)
        assert torch.equal(out.loss, cast_out.loss)
        assert torch.equal(gradient, cast_gradient)


@pytest.mark.parametrize("backend", BACKENDS_BUT_SLOW)
@pytest.mark.parametrize("name", ["prediction", "noisy", "target", "c_skip", "c_out", "banks", "temperature"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_non_finite_input_reaches_the_loss(backend: str, name: str, value: float, normalize: bool) -> None:
    if name == "temperature" and value < 0:
        pytest.skip("a ValueError")
    groups = {"query_groups": torch.tensor([0, 1]), "bank_groups": [torch.tensor([0, 1, 2, 0])]}
    arguments = make(2, [4], [6]) | {"normalize": normalize, "positives": [torch.tensor([-1, 2])], **groups}
    arguments["temperature"] = torch.tensor(0.5)
    tensor = arguments[name][0] if name == "banks" else arguments[name]
    tensor.reshape(-1)[-1 if name == "banks" else 0] = value  # query 0 has no positive; bank row 3 is in its group
    with torch.no_grad():
        assert not contrastive_diffusion_loss(**arguments, backend=backend).loss.isfinite()


BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "prediction without a latent": ({"prediction": torch.zeros(3)}, "prediction has shape [3]"),
    "prediction of integers": ({"prediction": torch.zeros(3, 6).long()}, "prediction is torch.int64"),
    "no queries": ({"prediction": torch.zeros(0, 6)}, "prediction has shape [0, 6]"),
    "noisy shape": ({"noisy": torch.zeros(3, 5)}, "noisy has shape [3, 5]: expected prediction's [3, 6]"),
    "target shape": ({"target": torch.zeros(2, 6)}, "target has shape [2, 6]"),
    "target device": ({"target": torch.zeros(3, 6, device="meta")}, "target is on meta"),
    "c_skip shape": ({"c_skip": torch.zeros(3, 1)}, "c_skip has shape [3, 1]"),
    "c_out dtype": ({"c_out": torch.zeros(3).int()}, "c_out is torch.int32"),
    "c_out missing": ({"c_out": None}, "c_out is NoneType"),
    "banks is a tensor": ({"banks": torch.zeros(4, 6)}, "pass [bank]"),
    "bank shape": ({"banks": [torch.zeros(4, 5)]}, "banks[0] has shape [4, 5]"),
    "bank is empty": ({"banks": [torch.zeros(0, 6)]}, "banks[0] is empty"),
    "bank device": ({"banks": [torch.zeros(4, 6, device="meta")]}, "banks[0] is on meta"),
    "positives length": ({"positives": []}, "positives has 0 entries: expected 1"),
    "positives is a tensor": ({"positives": torch.zeros(3).long()}, "pass [positives]"),
    "positives dtype": ({"positives": [torch.zeros(3).int()]}, "positives[0] is torch.int32"),
    "positives shape": ({"positives": [torch.zeros(4).long()]}, "positives[0] has shape [4]: expected [3]"),
    "positive too large": ({"positives": [torch.tensor([0, 4, 1])]}, "holds 4, but the bank has 4 rows"),
    "positive below -1": ({"positives": [torch.tensor([0, -2, 1])]}, "holds -2"),
    "default positives": ({"positives": None, "banks": [torch.zeros(2, 6)]}, "2 rows for 3 queries"),
    "temperature zero": ({"temperature": 0.0}, "temperature is 0.0"),
    "temperature negative": ({"temperature": -1}, "temperature is -1"),
    "temperature nan": ({"temperature": float("nan")}, "temperature is nan"),
    "temperature tensor zero": ({"temperature": torch.tensor(0.0)}, "temperature is 0"),
    "temperature shape": ({"temperature": torch.ones(3)}, "temperature has shape [3]"),
    "bank_weights length": ({"bank_weights": [1.0, 2.0]}, "bank_weights has 2 entries: expected 1"),
    "mse_weights shape": ({"mse_weights": torch.ones(2)}, "mse_weights has shape [2]"),
    "contrastive_weights shape": ({"contrastive_weights": torch.ones(4)}, "contrastive_weights has shape"),
    "query_groups alone": ({"query_groups": torch.zeros(3).long()}, "bank_groups is None"),
    "bank_groups alone": ({"bank_groups": [torch.zeros(4).long()]}, "query_groups is None"),
    "query_groups shape": (
        {"query_groups": torch.zeros(2).long(), "bank_groups": [torch.zeros(4).long()]},
        "query_groups has shape [2]",
    ),
    "bank_groups length": (
        {"query_groups": torch.zeros(3).long(), "bank_groups": []}, "bank_groups has 0 entries",
    ),
    "bank_groups shape": (
        {"query_groups": torch.zeros(3).long(), "bank_groups": [torch.zeros(3).long()]},
        "bank_groups[0] has shape [3]",
    ),
    "noisy wants a gradient": ({"noisy": torch.zeros(3, 6, requires_grad=True)}, "noisy requires a gradient"),
    "no tensors": (dict.fromkeys(("prediction", "noisy", "target")), "prediction is NoneType: expected a tensor"),
    "prediction is a list": ({"prediction": [[1.0]]}, "prediction is list: expected a tensor"),
    "prediction is a number": ({"prediction": torch.tensor(1.0)}, "prediction has shape []"),
    "noisy is a number": ({"noisy": torch.tensor(1.0)}, "noisy has shape []"),
    "target is an array": ({"target": 3.5}, "target is 3.5: expected a tensor"),
    "c_skip is a number": ({"c_skip": 1.0}, "c_skip is 1.0: expected a tensor"),
    "c_out is 0-d": ({"c_out": torch.tensor(1.0)}, "c_out has shape []: expected [3]"),
    "banks is None": ({"banks": None}, "banks is NoneType: expected a sequence of tensors"),
    "banks is a number": ({"banks": 4}, "banks is 4: expected a sequence of tensors"),
    "banks is an iterator": ({"banks": iter([torch.zeros(4, 6)])}, "banks is list_iterator: expected a sequence"),
    "bank is None": ({"banks": [None]}, "banks[0] is NoneType: expected a tensor"),
    "bank is 0-d": ({"banks": [torch.tensor(1.0)]}, "banks[0] has shape []"),
    "positives is a number": ({"positives": 1}, "positives is 1: expected a sequence of int64 tensors"),
    "positive is a list": ({"positives": [[0, 1, 2]]}, "positives[0] is list: expected an int64 tensor"),
    "positive is 0-d": ({"positives": [torch.tensor(1)]}, "positives[0] has shape []: expected [3]"),
    "temperature None": ({"temperature": None}, "temperature is NoneType: expected a finite number > 0"),
    "temperature text": ({"temperature": "0.1"}, "temperature is '0.1': expected a finite number > 0"),
    "temperature list": ({"temperature": [0.1]}, "temperature is list: expected a finite number > 0"),
    "temperature complex": ({"temperature": 1j}, "temperature is complex: expected a finite number > 0"),
    "temperature huge": ({"temperature": 10**400}, "temperature is 1000"),
    "temperature integer": ({"temperature": torch.tensor(1)}, "temperature is torch.int64"),
    "bank_weights is a number": ({"bank_weights": 0.5}, "bank_weights is 0.5: expected a sequence of numbers"),
    "bank_weights is 0-d": ({"bank_weights": torch.tensor(0.5)}, "bank_weights has shape []: expected 1 numbers"),
    "bank_weights of text": ({"bank_weights": ["x"]}, "bank_weights[0] is 'x': expected a number"),
    "bank_weights of None": ({"bank_weights": [None]}, "bank_weights[0] is NoneType: expected a number"),
    "bank_weights of tensors": ({"bank_weights": [torch.ones(2)]}, "bank_weights[0] has shape [2]: expected one"),
    "mse_weights is a list": ({"mse_weights": [1.0] * 3}, "mse_weights is list: expected a tensor"),
    "contrastive_weights is 0-d": ({"contrastive_weights": torch.tensor(1.0)}, "contrastive_weights has shape []"),
    "query_groups is a list": (
        {"query_groups": [0, 1, 2], "bank_groups": [torch.zeros(4).long()]},
        "query_groups is list: expected an int64 tensor",
    ),
    "bank_groups is a number": (
        {"query_groups": torch.zeros(3).long(), "bank_groups": 3}, "bank_groups is 3: expected a sequence",
    ),
    "bank_groups of a list": (
        {"query_groups": torch.zeros(3).long(), "bank_groups": [[0] * 4]}, "bank_groups[0] is list",
    ),
    "prediction is sparse": ({"prediction": torch.zeros(3, 6).to_sparse()}, "prediction has the layout torch.sparse"),
    "bank is sparse": ({"banks": [torch.zeros(4, 6).to_sparse()]}, "banks[0] has the layout torch.sparse_coo"),
    "mse_weights is sparse": ({"mse_weights": torch.ones(3).to_sparse()}, "mse_weights has the layout torch.sparse"),
    "banks is a mapping": ({"banks": {}}, "banks is dict: expected a sequence of tensors"),
    "no banks and a bad coefficient": (
        {"banks": [], "positives": None, "c_out": torch.ones(3).bool()}, "c_out is torch.bool",
    ),
    "temperature float32 can't hold": ({"temperature": 1e300}, "temperature is 1e+300: expected a finite number > 0"),
    "temperature float32 rounds to 0": ({"temperature": 1e-300}, "temperature is 1e-300: expected a finite number > 0"),
    "bank_weights of complex": ({"bank_weights": [torch.tensor(1j)]}, "bank_weights[0] is a torch.complex64 on cpu"),
    "normalize is a number": ({"normalize": -1}, "normalize is -1: expected True or False"),
    "normalize is text": ({"normalize": "yes"}, "normalize is 'yes': expected True or False"),
    "normalize is None": ({"normalize": None}, "normalize is NoneType: expected True or False"),
    "backend is a number": ({"backend": 3}, "backend is 3"),
    "backend is a list": ({"backend": ["cpu"]}, "backend is ['cpu']"),
    "backend": ({"backend": "gpu"}, "backend is 'gpu'"),
}  # fmt: skip


@pytest.mark.parametrize("backend", [*BACKENDS, None])
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_a_value_error_that_says_what(backend: str, case: str) -> None:
    change, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        contrastive_diffusion_loss(**{**make(3, [4], [6]), "backend": backend, **change})


@pytest.mark.parametrize("backend", [*BACKENDS, None])
@pytest.mark.parametrize("case", [name for name, (change, _) in BAD_INPUTS.items() if "positives" not in change])
def test_bad_input_of_the_commonest_call_is_the_same(backend: str, case: str) -> None:
    """Without positives the kernel is asked first, and checks for itself."""
    change, message = BAD_INPUTS[case]
    arguments = {**make(3, [4], [6]), "temperature": 1.0, "backend": backend, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        contrastive_diffusion_loss(**{name: value for name, value in arguments.items() if name != "positives"})


@pytest.mark.fault("an argument of the op is on another device", "an error that names it")
@pytest.mark.parametrize("backend", [None, *BACKENDS_BUT_SLOW])
@pytest.mark.parametrize("name", ["noisy", "target", "c_skip", "c_out", "banks", "mse_weights", "contrastive_weights"])
def test_an_argument_on_another_device_is_named(backend: str | None, name: str) -> None:
    """With the commonest arguments, which go to the op unchecked: it used to answer with memory that nothing filled."""
    arguments = make(3, [4], [6]) | {"positives": None, "mse_weights": torch.ones(3)}
    arguments |= {"contrastive_weights": torch.ones(3)}
    away = [arguments["banks"][0].to("meta")] if name == "banks" else arguments[name].to("meta")
    shown = "banks[0]" if name == "banks" else name
    with pytest.raises(ValueError, match=re.escape(f"{shown} is on meta: expected prediction's device, cpu")):
        contrastive_diffusion_loss(**arguments | {name: away}, backend=backend)


def test_the_op_itself_refuses_arguments_on_several_devices() -> None:
    a = make(3, [4], [6])
    call = [a["prediction"], a["noisy"], a["target"], a["c_skip"], a["c_out"], a["banks"], (), None, 1.0, [1.0]]
    for place in (0, 1, 3):
        moved = [*call[:place], call[place].to("meta"), *call[place + 1 :]]
        with pytest.raises(ValueError, match="expected prediction's device"):
            torch.ops.contrastive_i2v.diffusion_loss(*moved, None, None, None, (), False, False)


@pytest.mark.parametrize("backend", BACKENDS_BUT_SLOW)
def test_opcheck(backend: str) -> None:
    a = make(4, [5, 6], [2, 3], options=True)
    for dtype in (torch.float32, torch.float16):
        arguments = (
            a["prediction"].to(dtype).requires_grad_(), a["noisy"], a["target"], a["c_skip"], a["c_out"],
            a["banks"], a["positives"], None, 0.5, a["bank_weights"], a["mse_weights"],
            a["contrastive_weights"], a["query_groups"], a["bank_groups"], True, True,
        )  # fmt: skip
        if backend == "cpu":
            torch.library.opcheck(torch.ops.contrastive_i2v.diffusion_loss.default, arguments)
        elif backend == "triton":
            torch.library.opcheck(torch.ops.contrastive_i2v.diffusion_loss_triton.default, arguments)
        else:
            more = (*arguments[:7], torch.tensor([0.5], requires_grad=True), *arguments[8:], True, True)
            more[5][0].requires_grad_()
            torch.library.opcheck(torch.ops.contrastive_i2v.diffusion_loss_reference.default, more)
            more[5][0].requires_grad_(False)
    scale = (torch.randn(3, 4), torch.tensor(2.0), torch.float16)
    torch.library.opcheck(torch.ops.contrastive_i2v.scale_gradient.default, scale)


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_compiles_as_one_graph(backend: str | None) -> None:
    arguments = make(5, [13, 6], [12], options=True)
    torch._dynamo.reset()

    def step(prediction: Tensor, banks: list[Tensor]) -> tuple[Tensor, Tensor]:
        given = arguments | {"prediction": prediction * 2, "banks": banks}
        out = contrastive_diffusion_loss(**given, backend=backend)
        return out.loss * 3, out.contrastive

    prediction = arguments["prediction"].requires_grad_()
    expected, expected_contrastive = step(prediction, arguments["banks"])
    (expected_gradient,) = torch.autograd.grad(expected, prediction)
    loss, contrastive = torch.compile(step, fullgraph=True, backend="aot_eager")(prediction, arguments["banks"])
    (gradient,) = torch.autograd.grad(loss, prediction)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(contrastive, expected_contrastive)
    torch.testing.assert_close(gradient, expected_gradient)


def test_fake_tensors_have_the_real_shapes_and_dtypes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for dtype in (*DTYPES, torch.float64):
        real, gradient = run(make(3, [4, 5], [2, 3], dtype=dtype))
        with FakeTensorMode():
            fake, fake_gradient = run(
                {
                    "prediction": torch.empty(3, 2, 3, dtype=dtype),
                    "noisy": torch.empty(3, 2, 3, dtype=dtype),
                    "target": torch.empty(3, 2, 3, dtype=dtype),
                    "c_skip": torch.empty(3),
                    "c_out": torch.empty(3),
                    "banks": [torch.empty(4, 2, 3), torch.empty(5, 2, 3)],
                }
            )
        for one, other in zip((*real, gradient), (*fake, fake_gradient), strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype


def test_other_devices_turn_bad_values_into_nan_without_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a GPU does: the reference may not look at values. The CPU check is switched off to reach that path.
    a = make(2, [3], [4])
    inputs = [a[name] for name in ("prediction", "noisy", "target", "c_skip", "c_out")]
    rest = ([1.0], None, None, None, [], False, True)
    good = diffusion_loss_reference(*inputs, a["banks"], [torch.tensor([0, 1])], None, 1.0, *rest)
    assert good.loss.isfinite()
    import contrastive_i2v.ops.reference as reference

    monkeypatch.setattr(reference, "_values_are_readable", lambda tensor: False)
    assert diffusion_loss_reference(*inputs, a["banks"], [torch.tensor([0, 3])], None, 1.0, *rest).loss.isnan()
    assert diffusion_loss_reference(
        *inputs, a["banks"], [torch.tensor([0, 1])], torch.tensor(-1.0), 1.0, *rest
    ).loss.isnan()
