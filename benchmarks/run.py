"""One case from random tensors to rows: check every provider, time in turns those that are right, measure memory."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure, memory
from benchmarks.problems import Case, Problem
from benchmarks.registry import EAGER, Provider, Step, eager, with_gradient
from benchmarks.results import Row
from benchmarks.truth import Truth, establish


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure."""

    rounds: int = 30
    seconds: float = 10.0
    """A case's rounds stop after so long, but not before 5."""
    memory: bool = True
    cache_bytes: int = 64 << 20
    clock: Callable[[], float] = time.perf_counter
    """What a call on the CPU is timed by, in seconds."""


def run_case(
    case: Case, contenders: dict[str, Provider], effort: Effort, tick: Callable[[str], None] = lambda what: None
) -> list[Row]:
    """A row for each contender: `status` is "timed", "refused" (wrong, so not timed), "skipped" or "failed"."""
    try:
        return _run_case(case, contenders, effort, tick)
    except torch.OutOfMemoryError as error:  # of the inputs, or of all contenders together
        about = {"case": dataclasses.asdict(case), "flop": case.flop, "bytes": case.bytes, "status": "failed"}
        return [{**about, "provider": name, "reason": one_line(error)} for name in contenders]


def _run_case(case: Case, contenders: dict[str, Provider], effort: Effort, tick: Callable[[str], None]) -> list[Row]:
    if case.device == "cuda":
        torch.cuda.empty_cache()
    torch._dynamo.reset()  # else the shapes of other cases count towards its limit of recompilations
    tick("truth")
    copies = measure.copies_for(case, effort.cache_bytes)
    problems = [Problem.random(case, seed) for seed in range(copies)]
    truth = establish(problems[0], with_gradient(eager))
    rows: dict[str, Row] = {}
    steps: dict[str, Step] = {}
    for name, provider in contenders.items():
        tick(f"check {name}")
        rows[name], step = check(case, name, provider, problems[0], truth)
        if step is not None:
            steps[name] = step
    _time(case, contenders, effort, problems, truth, rows, steps, tick)
    for name in steps:
        if effort.memory and not contenders[name].is_floor:
            tick(f"memory {name}")
            peak = memory.cuda_peak(steps[name], problems[0]) if case.device == "cuda" else memory.cpu_peak(case, name)
            extra = None if peak is None else max(peak - case.gradient_bytes, 0)
            rows[name] |= {"peak_bytes": peak, "extra_bytes": extra}
    return list(rows.values())


def check(case: Case, name: str, provider: Provider, problem: Problem, truth: Truth) -> tuple[Row, Step | None]:
    """The row so far, and the step if it may be timed."""
    row: Row = {"case": dataclasses.asdict(case), "provider": name, "flop": case.flop, "bytes": case.bytes}
    if why_not := provider.why_not(case):
        return row | {"status": "skipped", "reason": why_not}, None
    try:
        step = provider.make()
        loss, gradient = step(problem)
    except Exception as error:  # somebody else's code on a shape or device that it may not know
        return row | {"status": "failed", "reason": one_line(error)}, None
    if provider.is_floor:
        return row | {"status": "timed"}, step
    loss_error, gradient_error = truth.errors(loss, gradient)
    row |= {
        "gradient_error": finite(gradient_error), "gradient_bar": truth.gradient_bar,
        "loss_error": finite(loss_error), "loss_bar": truth.loss_bar, "rows_checked": len(truth.rows),
    }  # fmt: skip
    if truth.accepts(loss_error, gradient_error):
        return row | {"status": "timed"}, step
    what = f"gradient error {gradient_error:.1e}, bar {truth.gradient_bar:.1e}"
    if not loss_error <= truth.loss_bar:
        what = f"loss error {loss_error:.1e}, bar {truth.loss_bar:.1e}"
    return row | {"status": "refused", "reason": what}, None


def _time(
    case: Case, contenders: dict[str, Provider], effort: Effort, problems: Sequence[Problem], truth: Truth,
    rows: dict[str, Row], steps: dict[str, Step], tick: Callable[[str], None],
) -> None:  # fmt: skip
    def take_turns(mode: str, samplers: dict[str, measure.Sampler]) -> None:
        times = measure.in_turns(samplers, effort.rounds, effort.seconds, lambda: tick(mode))
        for name, taken in times.items():
            baseline = times.get(EAGER) if name != EAGER else None
            rows[name][mode] = measure.summarize(taken, baseline)

    take_turns(
        "called", {name: measure.called(step, problems, case.device, effort.clock) for name, step in steps.items()}
    )
    if case.device == "cuda":
        graphs = {}
        for name, step in steps.items():
            tick(f"capture {name}")
            graphs[name] = capture(contenders[name], step, problems, truth)
        for name, graph in graphs.items():
            if isinstance(graph, str):
                rows[name]["graph"] = {"reason": graph}
        take_turns("graph", {name: graph for name, graph in graphs.items() if not isinstance(graph, str)})


def capture(provider: Provider, step: Step, problems: Sequence[Problem], truth: Truth) -> measure.Sampler | str:
    """Times a CUDA graph of the step, or why there is none; what the graph computes is checked as well."""
    if not provider.graph:
        return "a CUDA graph cannot hold it"
    try:
        sampler, value = measure.replayed(step, problems)
        if provider.is_floor:
            return sampler
        loss_error, gradient_error = truth.errors(*value())
    except Exception as error:
        return one_line(error)
    if truth.accepts(loss_error, gradient_error):
        return sampler
    return f"refused: a replay's gradient error is {gradient_error:.1e}, its loss error {loss_error:.1e}"


def count_all_kernels(case: Case, contenders: dict[str, Provider], rows: Sequence[Row]) -> None:
    """Fills in `kernels` of the rows that were timed."""
    torch._dynamo.reset()
    problem = Problem.random(case)
    for row in rows:
        if row["status"] == "timed" and row["provider"] in contenders:
            step = contenders[row["provider"]].make()
            step(problem)
            row["kernels"] = count_kernels(step, problem)


def count_kernels(step: Step, problem: Problem) -> int | None:
    """How many kernels and copies a step runs on the GPU; None where the profiler can't tell."""
    try:
        with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CUDA]) as profiler:
            warnings.simplefilter("ignore")
            step(problem)
            torch.cuda.synchronize()
        events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        return len(events) or None
    except Exception:
        return None


def one_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else ''}"


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
