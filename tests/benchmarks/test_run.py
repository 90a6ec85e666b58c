"""A wrong result is never timed, and what is timed is what was asked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as cli
from benchmarks import measure, peers, run
from benchmarks.environment import device_name
from benchmarks.problems import Case, Problem
from benchmarks.registry import BF16_SWITCH, EAGER, GEMM, Provider, Step, eager, providers, with_gradient
from benchmarks.results import Results
from benchmarks.run import Effort, run_case
from contrastive_i2v.ops import available_backends

CASE = Case(size=12, elements=64)
CASE_BF16 = Case(size=48, elements=64, dtype="bfloat16")
QUICK = Effort(rounds=2, seconds=0.1, memory=False)


def changed(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Provider:
    def step(problem: Problem) -> tuple[Tensor, Tensor]:
        return change(*with_gradient(eager)(problem))

    return Provider(make=lambda: step)


WRONG = {
    "2 % too large": changed(lambda loss, gradient: (loss, gradient * 1.02)),
    "loss off": changed(lambda loss, gradient: (loss + 0.01, gradient)),
    "NaN": changed(lambda loss, gradient: (loss, gradient.index_fill(0, torch.tensor([3]), torch.nan))),
    "NaN loss": changed(lambda loss, gradient: (loss * torch.nan, gradient)),
    "one row missing": changed(lambda loss, gradient: (loss, gradient.index_fill(0, torch.tensor([11]), 0.0))),
    "first bank alone": Provider(
        make=lambda: with_gradient(lambda problem: eager(dataclasses.replace(problem, banks=problem.banks[:1])))
    ),
    "diffusion loss alone": Provider(
        make=lambda: with_gradient(lambda problem: eager(dataclasses.replace(problem, banks=[])))
    ),
}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps that reach the clock."""
    seen: list[Step] = []
    called = measure.called

    def spy(step: Step, *rest: object) -> measure.Sampler:
        seen.append(step)
        return called(step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "called", spy)
    return seen


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_result_is_refused_and_not_timed(dtype: str, normalize: bool, timed: list[Step]) -> None:
    everyone = providers("cpu")
    contenders = {EAGER: everyone[EAGER], **WRONG, "ours:reference": everyone["ours:reference"]}
    case = dataclasses.replace(CASE, dtype=dtype, normalize=normalize)
    rows = {row["provider"]: row for row in run_case(case, contenders, QUICK)}  # type: ignore[arg-type]
    right = {EAGER, "ours:reference"}
    assert {name for name, row in rows.items() if row["status"] == "timed"} == right
    assert all("called" not in row and "bar" in row["reason"] for name, row in rows.items() if name not in right)
    assert len(timed) == len(right)


def test_a_contender_that_raises_or_declines_does_not_stop_the_others() -> None:
    def broken() -> Step:
        raise RuntimeError("no kernel image\nfor this device")

    contenders = {
        "broken": Provider(make=broken),
        "small": Provider(make=lambda: with_gradient(eager), why_not=lambda case: "it takes N=128"),
        EAGER: Provider(make=lambda: with_gradient(eager)),
    }
    rows = {row["provider"]: row for row in run_case(CASE, contenders, QUICK)}
    assert rows["broken"] | {"status": "failed", "reason": "RuntimeError: no kernel image"} == rows["broken"]
    assert rows["small"] | {"status": "skipped", "reason": "it takes N=128"} == rows["small"]
    assert rows[EAGER]["called"]["median_us"] > 0


def test_contenders_take_turns_and_speed_ups_are_paired_by_round() -> None:
    order: list[str] = []

    def sampler(name: str, base: float) -> measure.Sampler:
        def sample() -> float:
            order.append(name)
            return base * (1 + len(order) // 2)  # the machine gets slower all the time

        return sample

    times = measure.in_turns({"a": sampler("a", 6.0), "b": sampler("b", 2.0)}, rounds=7, seconds=60)
    assert order == ["a", "b"] * 7
    figures = measure.summarize(times["b"], [3 * taken for taken in times["b"]])
    assert figures["speedup"] == pytest.approx({"p20": 3.0, "median": 3.0, "p80": 3.0})
    assert figures["p20_us"] < figures["median_us"] < figures["p80_us"]  # type: ignore[operator]


def test_the_time_limit_leaves_five_rounds() -> None:
    times = measure.in_turns({"a": lambda: 1.0}, rounds=100, seconds=0.0)
    assert len(times["a"]) == measure.MIN_ROUNDS


def test_cold_problems_together_are_past_the_cache() -> None:
    case = dataclasses.replace(CASE, size=16, elements=4096, cache="cold")
    cache = 8 << 20
    assert measure.copies_for(case, cache) * case.bytes >= 3 * cache
    assert measure.copies_for(dataclasses.replace(case, size=4096), cache) == 2
    assert measure.copies_for(dataclasses.replace(case, cache="hot"), cache) == 1


def test_cold_copies_are_used_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure.SAMPLE_US, "cpu", 1.0)
    used: list[object] = []
    problems = [Problem.random(CASE, seed) for seed in range(3)]

    def step(problem: Problem) -> tuple[Tensor, Tensor]:
        used.append(problem)
        return problem.noisy, problem.noisy

    sample = measure.called(step, problems, "cpu")
    sample()
    sample()
    assert all(one is problems[index % 3] for index, one in enumerate(used))


@pytest.mark.skipif(available_backends()["cpu"] != "available", reason="needs the extension")
def test_ours_takes_part_again_with_each_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BF16_SWITCH, "off")
    contenders = {name: one for name, one in providers("cpu", ["on"]).items() if name.startswith("ours:cpu")}
    rows = {row["provider"]: row for row in run_case(CASE_BF16, contenders, QUICK)}  # type: ignore[arg-type]
    assert rows["ours:cpu"]["status"] == "timed"
    assert "is on: expected auto" in rows[f"ours:cpu {BF16_SWITCH}=on"]["reason"]  # so it was set
    assert os.environ[BF16_SWITCH] == "off"


def test_a_library_that_is_held_back_is_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    free = device_name("cpu")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert device_name("cpu") == f"{free[:-1]}, held to AVX2)"


def test_the_bare_gemm_does_the_flop_that_are_counted() -> None:
    provider = providers("cpu")[GEMM]
    assert isinstance(provider, Provider)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        provider.make()(Problem.random(CASE))
    assert counter.get_total_flops() == CASE.flop


def test_an_absent_peer_says_which_package_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    for peer in peers.PEERS:
        assert providers("cpu")[peer.name] == f"not installed; pip install {peer.package}"


def test_a_peer_that_is_installed_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    assert all(peer.absent("cpu") == "it needs a CUDA device" and not peer.absent("cuda") for peer in peers.PEERS)


@pytest.mark.parametrize("normalize", [False, True])
def test_what_surrounds_a_peer_adds_up_to_the_loss(normalize: bool) -> None:
    case = dataclasses.replace(CASE, normalize=normalize)

    def plain(x: Tensor, bank: Tensor, positives: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x @ bank.T, positives)

    provider = Provider(make=lambda: with_gradient(peers.around(plain, peers.prologue)))
    rows = run_case(case, {"plain peer": provider}, QUICK)
    assert rows[0]["status"] == "timed", rows[0]


def test_a_nan_is_null_in_json() -> None:
    assert run.finite(float("nan")) is None and run.finite(0.5) == 0.5


def test_another_dtype_of_a_resumed_run_has_a_ceiling_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"bfloat16": 3.0, "float32": 2.0}

    def measured(device: str, dtypes: list[str], clock: object) -> dict[str, float]:
        return {"bytes_per_s": 1.0, **{f"flop_per_s_{dtype}": rates[dtype] for dtype in dtypes}}

    monkeypatch.setattr(measure, "ceilings", measured)
    options = [
        "--sizes",
        "3",
        "--elements",
        "8",
        "--providers",
        "eager",
        "--rounds",
        "1",
        "--json",
        str(tmp_path / "a.json"),
    ]
    cli.main([*options, "--dtype", "float32"])
    cli.main([*options, "--dtype", "bfloat16", "--resume"])
    found = Results.load(tmp_path / "a.json").ceilings
    assert found == {"bytes_per_s": 1.0, "flop_per_s_float32": 2.0, "flop_per_s_bfloat16": 3.0}
