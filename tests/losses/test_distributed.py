"""Losses over 2, 3 and 4 processes (gloo): equal to one process, and no more on the wire than promised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks


@pytest.mark.processes
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_agree_with_one_process(world: int, tmp_path: Path) -> None:
    command = [sys.executable, ranks.__file__, str(world), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in tmp_path.iterdir()} >= ranks.CHECKS.keys() and len(ranks.CHECKS) >= 8


def test_bytes_on_the_wire_at_the_design_point() -> None:
    """Two banks of N = 32768 latents of 4096 elements, 8 ranks; the formulas are those that the ranks count by."""
    rows, elements = 32_768, 4096
    gathered = ranks.gather_bytes(8, rows, elements, banks=2)
    assert gathered <= 0.47e9
    # An all-gather with a gradient also reduce-scatters the bank's gradient.
    assert 2 * gathered == pytest.approx(0.94e9, rel=0.01)
    # Sharded, the queries travel: no less where there are as many as candidates, far less with 32 candidates each.
    assert ranks.sharded_bytes(8, rows, elements, banks=2, itemsize=2) <= 0.48e9
    assert ranks.sharded_bytes(8, rows // 32, elements, banks=2, itemsize=4) < gathered / 15
