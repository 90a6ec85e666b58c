"""The products of a bfloat16 bank by the processor's own bfloat16 instructions: their tiles, through the emulations
that every processor can run, and the check that the hardware has to pass."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import BACKENDS, HAZARDS, eager, error, make, run, to_double
from torch import Tensor

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the extension")

SWITCH = "CI2V_CPU_BF16"
SHAPES = {  # all too large for the regime without matrix products
    "ragged": (70, [300, 17], [131]),
    "slices": (33, [530, 61], [3, 175]),
    "strips": (1100, [19], [33]),
}


HAS_AVX512 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
HAS_AMX = (
    bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    and torch.backends.mkldnn.enabled
    and "amx" in os.environ.get("ONEDNN_MAX_CPU_ISA", "amx").lower()  # which holds PyTorch's library back
)
needs_avx512 = pytest.mark.skipif(not HAS_AVX512, reason="needs a processor with AVX512-BF16")
SPLITTING = ["emulated"]
ROUNDING = ["emulated-avx512", pytest.param("avx512", marks=needs_avx512)]


@pytest.fixture(params=[*SPLITTING, *ROUNDING], autouse=True)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs on each kind of tiles."""
    monkeypatch.setenv(SWITCH, request.param)
    return str(request.param)


def run_as(mode: str, arguments: dict[str, Any]) -> tuple[Any, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, mode)
        return run(arguments, "cpu")


def repeat_queries(arguments: dict[str, Any]) -> dict[str, Any]:
    """Enough copies of the queries, in bfloat16, to leave the regime without matrix products."""
    times = 1 + 2**14 // (len(arguments["prediction"]) * sum(len(bank) for bank in arguments["banks"]))
    repeated = {
        name: arguments[name].repeat(times, *[1] * (arguments[name].dim() - 1)).bfloat16()
        for name in ("prediction", "noisy", "target")
    }
    repeated |= {name: arguments[name].repeat(times) for name in ("c_skip", "c_out")}
    repeated["positives"] = [rows.repeat(times) for rows in arguments["positives"]]
    return arguments | repeated | {"banks": [bank.bfloat16() for bank in arguments["banks"]]}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", HAZARDS)
def test_hazards_are_met(name: str, normalize: bool, mode: str) -> None:
    arguments = repeat_queries(HAZARDS[name]()) | {"normalize": normalize}
    if normalize:
        arguments["temperature"] = 0.002 if name == "saturated" else 0.07
    truth, expected = run(to_double(arguments), "reference")
    out, gradient = run(arguments, "cpu")
    _, wide = run_as("off", arguments)
    _, plain = eager(arguments)
    assert (out.contrastive >= 0).all()
    assert error(gradient, expected) <= 2 * error(plain, expected)
    if mode in SPLITTING:  # as in float32
        assert error(gradient, expected) < 1.01 * error(wide, expected)
        assert error(out.contrastive, truth.contrastive) < 2e-5  # of 2^-16 a float; of 2^-9 without the low parts


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_ragged_tiles_strips_and_options(shape: tuple[int, list[int], list[int]], normalize: bool, mode: str) -> None:
    arguments = make(*shape, dtype=torch.bfloat16, options=True) | {"normalize": normalize}
    arguments["temperature"] = 0.1 if normalize else 3.0
    truth, expected = run(to_double(arguments), "reference")
    out, gradient = run(arguments, "cpu")
    assert error(out.contrastive, truth.contrastive) < (1e-5 if mode in SPLITTING else 2**-10)
    assert error(gradient, expected) < (2**-8 if mode in SPLITTING else 2**-7)


@pytest.mark.parametrize(("queries", "rows", "elements"), [(127, 139, 133), (41, 531, 1027)])
def test_every_pair_is_packed_where_it_belongs(queries: int, rows: int, elements: int) -> None:
    """Query i is 64 times the unit vector d, so its logits are column d of the bank; one row w has that column's
    maximum by far. Then all that is left, exactly, is CE_i = 64 (z_wd - z_pd) and dCE_i/dF_i = z_w - z_p."""
    bank = torch.randint(-8, 9, (rows, elements), generator=torch.Generator().manual_seed(0)).bfloat16()
    i = torch.arange(queries)
    d = i * (elements // queries)
    d[-1] = elements - 1
    winner = (7 * d + 3) % rows
    winner[-1] = rows - 1
    bank[winner, d] = 20
    positives = (5 * i + 1) % rows
    arguments = {
        "prediction": torch.zeros(queries, elements).index_put((i, d), torch.tensor(64.0)).bfloat16(),
        "noisy": torch.zeros(queries, elements, dtype=torch.bfloat16),
        "target": torch.zeros(queries, elements, dtype=torch.bfloat16),
        "c_skip": torch.zeros(queries),
        "c_out": torch.ones(queries),
        "banks": [bank],
        "positives": [positives],
        "bank_weights": [float(queries)],
        "mse_weights": torch.zeros(queries),
    }
    out, gradient = run(arguments, "cpu")
    assert torch.equal(gradient, bank[winner] - bank[positives])
    torch.testing.assert_close(out.contrastive[0], 64 * (20 - bank[positives, d].float()).mean())


def test_no_bit_depends_on_the_run_or_the_number_of_threads() -> None:
    arguments = make(*SHAPES["slices"], dtype=torch.bfloat16)
    wide, _ = run_as("off", arguments)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            out, gradient = run(arguments, "cpu")
            results.append(torch.cat([gradient.flatten().float(), out.contrastive, out.loss[None]]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])
    assert not torch.equal(out.contrastive, wide.contrastive)  # else the tiles were not used


def test_what_is_not_finite_stays_so() -> None:
    arguments = make(*SHAPES["ragged"], dtype=torch.bfloat16)
    for value in ("nan", "inf", "-inf"):
        prediction = arguments["prediction"].clone()
        prediction[3, 5] = float(value)
        out, gradient = run(arguments | {"prediction": prediction}, "cpu")
        assert not out.loss.isfinite()
        assert not gradient[3].isfinite().any()
        assert gradient[:3].isfinite().all()
        assert gradient[4:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_predictions_keep_products_in_float32(dtype: torch.dtype) -> None:
    arguments = make(*SHAPES["ragged"], dtype=dtype)
    arguments["banks"][0] = arguments["banks"][0].bfloat16()
    out, gradient = run(arguments, "cpu")
    wide_out, wide = run_as("off", arguments)
    assert torch.equal(out.contrastive, wide_out.contrastive)
    assert torch.equal(gradient, wide)


@pytest.mark.parametrize("mode", ["off"], indirect=True)
def test_a_wrong_kernel_is_caught_once_and_float32_takes_over() -> None:
    """The check runs once in a process, so this one has its own."""
    code = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
from problems import make, run
arguments = make(70, [300, 17], [131], dtype=torch.bfloat16)
results = []
for mode in ("off", "broken", "broken"):
    os.environ["CI2V_CPU_BF16"] = mode
    out, gradient = run(arguments, "cpu")
    results.append(torch.cat([gradient.flatten().float(), out.contrastive]))
assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])
"""
    command = [sys.executable, "-W", "always", "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, env=os.environ | {SWITCH: "off"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("bfloat16 banks are multiplied in float32") == 1


@pytest.mark.parametrize("mode", ["auto"], indirect=True)
def test_the_switch_takes_known_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "on")
    with pytest.raises(ValueError, match=f"{SWITCH} is on: expected auto, off, avx512, emulated or emulated-avx512"):
        run(make(*SHAPES["ragged"], dtype=torch.bfloat16), "cpu")


@pytest.mark.skipif(HAS_AVX512, reason="this processor has the instructions")
@pytest.mark.parametrize("mode", ["avx512"], indirect=True)
def test_missing_instructions_are_named() -> None:
    with pytest.raises(ValueError, match=f"{SWITCH} is avx512, but this processor has no AVX512-BF16"):
        run(make(*SHAPES["ragged"], dtype=torch.bfloat16), "cpu")


def is_amd() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "AuthenticAMD" in info.read_text()


@pytest.mark.skipif(HAS_AMX or (HAS_AVX512 and is_amd()), reason="this processor gains from its instructions")
@pytest.mark.parametrize("mode", ["auto"], indirect=True)
def test_without_faster_instructions_nothing_changes() -> None:
    arguments = make(*SHAPES["ragged"], dtype=torch.bfloat16)
    for one, other in zip(run_as("auto", arguments), run_as("off", arguments), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("mode", "emulation"),
    [
        pytest.param("auto", "emulated", marks=pytest.mark.skipif(not HAS_AMX, reason="needs a processor with AMX")),
        pytest.param("avx512", "emulated-avx512", marks=needs_avx512),
    ],
    indirect=["mode"],
)
def test_the_hardware_computes_what_the_emulation_does(mode: str, emulation: str, normalize: bool) -> None:
    arguments = make(96, [530, 256], [3, 175], dtype=torch.bfloat16) | {"normalize": normalize, "temperature": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that the check failed
        out, gradient = run_as(mode, arguments)
    emulated_out, emulated = run_as(emulation, arguments)
    _, wide = run_as("off", arguments)
    assert error(out.contrastive, emulated_out.contrastive) < 2e-6
    assert error(gradient, emulated) < 2e-3
    assert not torch.equal(gradient, wide)  # else it was not used; two losses may round to the same


@pytest.mark.parametrize("mode", ROUNDING, indirect=True)
def test_rounding_begins_where_it_gains_and_when_everything_is_bfloat16(mode: str) -> None:
    def is_wide(arguments: dict[str, Any]) -> bool:
        _, gradient = run(arguments, "cpu")
        return torch.equal(gradient, run_as("off", arguments)[1])

    assert is_wide(make(16, [32, 32], [600], dtype=torch.bfloat16))
    assert not is_wide(make(16, [32, 33], [600], dtype=torch.bfloat16))
    mixed = make(70, [300, 17], [131], dtype=torch.bfloat16)
    mixed["banks"][1] = mixed["banks"][1].float()
    assert is_wide(mixed)


@pytest.mark.parametrize("elements", [1, 2, 33, 511, 513])
@pytest.mark.parametrize("queries", [1, 5, 7, 13, 64, 65])
def test_rows_of_any_length_and_number(queries: int, elements: int) -> None:
    """Of small whole numbers, so that the logits are exact however they are summed."""
    generator = torch.Generator().manual_seed(queries * elements)
    arguments = make(queries, [1100 // queries + 1, 77], [elements], dtype=torch.bfloat16)
    for name in ("prediction", "noisy"):
        arguments[name] = torch.randint(-2, 3, (queries, elements), generator=generator).bfloat16()
    arguments["c_skip"], arguments["c_out"] = torch.ones(queries), -torch.ones(queries)
    arguments["banks"] = [
        torch.randint(-2, 3, bank.shape, generator=generator).bfloat16() for bank in arguments["banks"]
    ]
    out, gradient = run(arguments, "cpu")
    wide_out, wide = run_as("off", arguments)
    torch.testing.assert_close(out.contrastive, wide_out.contrastive)
    torch.testing.assert_close(gradient, wide, rtol=2**-6, atol=2**-7 * float(wide.float().abs().max()))
