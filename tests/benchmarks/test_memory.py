"""The CPU's peak memory is measured truly."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from benchmarks import memory
from benchmarks.problems import Case

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 1 << 20


def peak_or_skip(function: object) -> int:
    try:
        return memory.peak_of(function)  # type: ignore[arg-type]
    except OSError as error:
        pytest.skip(f"this system does not let a process reset its peak: {error}")


# More than malloc ever keeps for itself, 32 MiB: below that an earlier test's freed memory may serve.
@pytest.mark.parametrize("mib", [64, 128])
def test_a_known_allocation_is_seen(mib: int) -> None:
    def allocate() -> None:
        torch.ones(mib * MIB, dtype=torch.uint8)  # freed at once: only the peak knows

    assert peak_or_skip(allocate) == pytest.approx(mib * MIB, rel=0.1)


def test_an_earlier_peak_does_not_count() -> None:
    torch.ones(200 * MIB, dtype=torch.uint8)
    assert peak_or_skip(lambda: torch.ones(16 * MIB, dtype=torch.uint8)) < 32 * MIB


def test_a_fresh_process_measures_a_provider() -> None:
    """Eager keeps the logits: 4 MiB for one bank of 1024 x 1024, in more than one copy."""
    case = Case(size=1024, elements=16, banks=1)
    peak = memory.cpu_peak(case, "eager")
    if peak is None:
        pytest.skip("this system does not let a process reset its peak")
    assert 8 * MIB < peak < 64 * MIB


def test_a_process_that_fails_gives_no_figure() -> None:
    assert memory.cpu_peak(dataclasses.replace(Case(size=4), elements=8), "nobody") is None
