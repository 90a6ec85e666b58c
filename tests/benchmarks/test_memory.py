"""The CPU's peak memory is measured truly."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory
from benchmarks.problems import Case

pytestmark = [pytest.mark.processes, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
MIB = 1 << 20


def fresh_peak(mib: int, earlier_mib: int = 0) -> int:
    """`peak_of` an allocation in a fresh interpreter: this one's heap may hold freed memory that serves it."""
    code = f"""
import torch
from benchmarks import memory
torch.ones({earlier_mib} << 20, dtype=torch.uint8)
try:
    print(memory.peak_of(lambda: torch.ones({mib} << 20, dtype=torch.uint8)))
except OSError as error:
    print("no:", error)
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("no:"):
        pytest.skip(f"this system does not let a process reset its peak: {done.stdout}")
    return int(done.stdout)


@pytest.mark.parametrize("mib", [64, 128])
def test_a_known_allocation_is_seen(mib: int) -> None:
    assert fresh_peak(mib) == pytest.approx(mib * MIB, rel=0.1)


def test_an_earlier_peak_does_not_count() -> None:
    assert fresh_peak(16, earlier_mib=200) < 32 * MIB


def test_a_fresh_process_measures_a_provider() -> None:
    """Eager keeps the logits: 4 MiB for one bank of 1024 x 1024, in more than one copy."""
    case = Case(size=1024, elements=16, banks=1)
    peak = memory.cpu_peak(case, "eager")
    if peak is None:
        pytest.skip("this system does not let a process reset its peak")
    assert 8 * MIB < peak < 64 * MIB


def test_a_process_that_fails_gives_no_figure() -> None:
    assert memory.cpu_peak(dataclasses.replace(Case(size=4), elements=8), "nobody") is None
