"""What `make test` leaves out: the same kinds everywhere, and said at the end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = "pytester"
ROOT = Path(__file__).resolve().parent.parent

MODULE = """
import pytest

def test_quick(): pass

@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_slow(n): pass

@pytest.mark.umap
@pytest.mark.slow
def test_map(): pass
"""


def test_every_marker_is_left_out_by_name() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    registered = re.findall(r'^    "(\w+): ', settings[settings.index("\nmarkers = [") :], re.MULTILINE)
    (expression,) = re.findall(r"^SLOW := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(registered) >= 6
    assert expression.split(" or ") == registered


@pytest.mark.parametrize("more", [(), pytest.param(("-n", "2"), marks=pytest.mark.processes)])
def test_what_is_left_out_is_said_by_kind(pytester: pytest.Pytester, more: tuple[str, ...]) -> None:
    if more:
        pytest.importorskip("xdist")
    pytester.makeini("[pytest]\nmarkers =\n    umap\n    slow")
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(MODULE)
    said = "left out: 3 slow tests (slow 2, umap 1); make test-all runs them"
    fast = pytester.runpytest("-m", "not (umap or slow)", *more)
    fast.assert_outcomes(passed=1, deselected=0 if more else 3)
    assert said in fast.outlines
    slow = pytester.runpytest("-m", "umap or slow", *more)
    slow.assert_outcomes(passed=3, deselected=0 if more else 1)
    assert not [line for line in slow.outlines if "left out" in line]


def test_a_test_starts_with_the_threads_of_the_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(
        """
import torch

THREADS = torch.get_num_threads()

def test_changes_them(): torch.set_num_threads(THREADS + 1)

def test_has_its_own(): assert torch.get_num_threads() == THREADS
"""
    )
    pytester.runpytest().assert_outcomes(passed=2)
