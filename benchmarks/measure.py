"""Times several steps in turns. All that is compared runs in one process, one sample each a round (A B C A B C ...),
so that a machine that drifts or is shared slows them all, and speed-ups are taken round by round."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.problems import DTYPES, Case, Problem
from benchmarks.registry import Step

Sampler = Callable[[], float]  # () -> microseconds a call, averaged over one sample
SAMPLE_US = {"cpu": 20_000.0, "cuda": 5_000.0}
MAX_CALLS, MAX_COPIES, MIN_ROUNDS = 1000, 256, 5
MAX_GRAPH_CALLS = 256


def copies_for(case: Case, cache_bytes: int) -> int:
    """How many problems to go through in turn, so that a cold one has left the last-level cache by its next use."""
    if case.cache == "hot":
        return 1
    return min(max(math.ceil(3 * cache_bytes / case.bytes), 2), MAX_COPIES)


def called(
    step: Step, problems: Sequence[Problem], device: str, clock: Callable[[], float] = time.perf_counter
) -> Sampler:
    """Times calls from Python, as a training loop makes them; on a CPU by `clock`, in seconds."""
    turn = itertools.cycle(problems)

    def run(calls: int) -> float:
        if device == "cpu":
            start = clock()
            for _ in range(calls):
                step(next(turn))
            return (clock() - start) * 1e6
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(calls):
            step(next(turn))
        last.record()
        last.synchronize()
        return first.elapsed_time(last) * 1e3

    call_us = run(1)
    is_long = call_us > 10 * SAMPLE_US[device]
    calls = 1 if is_long else _calls(run(3) / 3, device)

    def sample() -> float:
        if not is_long:
            run(1)  # what the contender before left in the caches isn't ours to pay for
        return run(calls) / calls

    return sample


def replayed(step: Step, problems: Sequence[Problem]) -> tuple[Sampler, Callable[[], tuple[Tensor, Tensor]]]:
    """Times a CUDA graph that holds several calls, which leaves Python and most of the launches out.

    Returns the sampler, and a function that replays the graph and gives the result of its first call.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(2):
            step(problems[0])
        first.record()
        step(problems[0])
        last.record()
    last.synchronize()
    torch.cuda.current_stream().wait_stream(stream)
    calls = min(max(_calls(first.elapsed_time(last) * 1e3, "cuda"), 2), MAX_GRAPH_CALLS)
    calls = max(calls, len(problems))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(problems[0])
        for index in range(1, calls):
            step(problems[index % len(problems)])

    def sample() -> float:
        graph.replay()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) * 1e3 / calls

    def value() -> tuple[Tensor, Tensor]:
        for tensor in result:
            tensor.fill_(torch.nan)  # a replay that writes nothing must not pass
        graph.replay()
        torch.cuda.synchronize()
        return result

    return sample, value


def _calls(call_us: float, device: str) -> int:
    return min(max(math.ceil(SAMPLE_US[device] / max(call_us, 1e-3)), 1), MAX_CALLS)


def in_turns(
    samplers: Mapping[str, Sampler], rounds: int, seconds: float, tick: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Microseconds a call, by name and round: `rounds` rounds, or as many as fit in `seconds` but at least 5."""
    times: dict[str, list[float]] = {name: [] for name in samplers}
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for name, sample in samplers.items():
            times[name].append(sample())
        tick()
    return times


def summarize(times: Sequence[float], baseline: Sequence[float] | None) -> dict[str, object]:
    """Median, p20 and p80 in microseconds, and the same of the speed-up over the baseline, paired by round."""
    p20, median, p80 = quantiles(times)
    figures: dict[str, object] = {"median_us": median, "p20_us": p20, "p80_us": p80, "samples": len(times)}
    if baseline:
        slow, middle, fast = quantiles([theirs / ours for theirs, ours in zip(baseline, times, strict=True)])
        figures["speedup"] = {"p20": slow, "median": middle, "p80": fast}
    return figures


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p20, median, p80."""
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    p20, median, p80 = torch.tensor(values, dtype=torch.float64).quantile(levels).tolist()
    return p20, median, p80


def ceilings(device: str, dtypes: Sequence[str], clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """What this device reaches on large tensors: bytes/s of a copy, read and written, and FLOP/s of a matrix product
    in each dtype, on random data."""

    def best(function: Callable[[], object]) -> float:
        function()
        taken = []
        for _ in range(5):
            if device == "cuda":
                torch.cuda.synchronize()
            start = clock()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(clock() - start)
        return min(taken)

    elements, side = (1 << 30, 8192) if device == "cuda" else (1 << 26, 1536)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    found = {"bytes_per_s": 2 * source.nbytes / best(functools.partial(target.copy_, source))}
    del source, target
    for name in dtypes:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[name]) for _ in range(2))
        found[f"flop_per_s_{name}"] = 2 * side**3 / best(functools.partial(torch.mm, a, b))
    return found
