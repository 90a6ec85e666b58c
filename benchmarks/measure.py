"""Timing and error of one step function."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.registry import Step


def time_step(step: Step, device: str, seconds: float) -> dict[str, float | int | None]:
    """Median, p20 and p80 in microseconds, and on a GPU the peak memory above what was there before.

    Inputs stay where the previous run left them: the caches are hot.
    """
    step()
    times: list[float] = []
    peak = None
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e6)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() - before
    quantiles = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double())
    p20, median, p80 = (round(float(value), 2) for value in quantiles)
    return {"median_us": median, "p20_us": p20, "p80_us": p80, "runs": len(times), "peak_bytes": peak}


def relative_error(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth|; NaN when value is not finite."""
    return float((value.double() - truth).norm() / truth.norm())
