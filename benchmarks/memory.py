"""Peak memory of one step above its inputs: the allocator's counter on a GPU, the process's own peak on a CPU.

torch counts nothing on a CPU, so there a fresh process makes the inputs, resets its peak, runs the step and reads the
peak back. Freed blocks go straight back to the system in it, so that none hides in the heap. Linux only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.problems import Case, Problem
from benchmarks.registry import Provider, Step, providers

PROCESS = Path("/proc/self")
TIMEOUT_S = 600


def cuda_peak(step: Step, problem: Problem) -> int:
    step(problem)  # what a library allocates once is not the step's
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(problem)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cpu_peak(case: Case, provider: str) -> int | None:
    """Bytes, or None where they cannot be measured."""
    if not PROCESS.is_dir():
        return None
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(dataclasses.asdict(case)), provider, threads]
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            command, env=environment, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    answer: int | None = json.loads(done.stdout.splitlines()[-1])
    return answer


def resident(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the peak) of this process, in bytes."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_of(function: Callable[[], object]) -> int:
    """How far this process's resident memory rises above where it stands while `function` runs."""
    (PROCESS / "clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    result = function()
    peak = resident("VmHWM")
    del result
    return max(peak - before, 0)


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    torch.set_num_threads(int(sys.argv[3]))
    provider = providers(case.device)[sys.argv[2]]
    assert isinstance(provider, Provider)
    step = provider.make()
    # libraries and threads start on a problem whose own memory is nothing
    step(Problem.random(dataclasses.replace(case, size=min(case.size, 16))))
    problem = Problem.random(case)
    try:
        print(json.dumps(peak_of(lambda: step(problem))))
    except OSError:
        print("null")


if __name__ == "__main__":
    main()
