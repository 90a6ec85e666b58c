"""What `make test` leaves out: the same kinds everywhere, and said at the end."""

from __future__ import annotations

import re
import sys
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


KILLED = """
import os
def test_dies(): os.kill(os.getpid(), 9)
"""
HANGS = """
import ctypes
def test_hangs():  # in C code that holds the interpreter's lock and no signal interrupts
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="needs pthread_mutex_lock, and zeros that are an open mutex")
@pytest.mark.fault("a process of the tests dies, or a test hangs", "the run ends, with the test's name")
@pytest.mark.parametrize(("module", "test"), [(KILLED, "test_dies"), (HANGS, "test_hangs")], ids=["killed", "hangs"])
def test_a_run_ends_with_the_name_of_the_test_that_ended_its_process(
    pytester: pytest.Pytester, module: str, test: str
) -> None:
    pytest.importorskip("xdist")
    (options,) = re.findall(r"^XDIST := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    settings = re.findall(r"^(timeout|faulthandler_\w+) = (\w+)", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    short = {"timeout": "2", "faulthandler_timeout": "4"}
    pytester.makeini("\n".join(["[pytest]", *(f"{name} = {short.get(name, value)}" for name, value in settings)]))
    pytester.makepyfile(test_bad=module, **{f"test_{n}": "def test_fine(): pass" for n in range(6)})
    run = pytester.runpytest_subprocess(*options.replace("auto", "2").split(), timeout=60)
    assert any(f"FAILED test_bad.py::{test} - worker" in line for line in run.outlines)
    assert run.ret == 1
