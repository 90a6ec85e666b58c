"""Machine code for sm_80 and sm_90 without a GPU: what the launchers launch compiles, multiplies matrices with matrix
instructions, keeps everything in registers, and fits the chip. CI2V_COMPILE_ALL=1 takes every dtype and
similarity on both."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.triton
SHARED = {80: 163 * 1024, 90: 227 * 1024}
PRODUCTS = {"partial_logits_kernel", "small_gradient_kernel", "scaled_exp_kernel", "gradient_kernel"}
LARGE = {"prologue_kernel", "scaled_exp_kernel", "glue_kernel", "gradient_kernel", "loss_kernel"}
SMALL = {"partial_logits_kernel", "softmax_kernel", "small_gradient_kernel"}


def compiled(arch: int, dtype: str, similarity: str, folder: Path) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).parent / "compile_ahead.py"
    done = subprocess.run(
        [sys.executable, program, str(arch), dtype, similarity, folder], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# Half a minute each from a cold cache of triton's, seconds from a warm one.
COMBINATIONS = [(90, "bfloat16", "dot"), (80, "bfloat16", "cosine")]
if os.environ.get("CI2V_COMPILE_ALL") == "1":
    COMBINATIONS = list(itertools.product((80, 90), ("bfloat16", "float16", "float32"), ("dot", "cosine")))


@pytest.mark.parametrize(("arch", "dtype", "similarity"), COMBINATIONS)
def test_machine_code(arch: int, dtype: str, similarity: str, tmp_path: Path) -> None:
    reports = compiled(arch, dtype, similarity, tmp_path)
    assert {report["kernel"] for report in reports} >= SMALL | LARGE
    for report in reports:
        assert report["spills"] == 0, report
        assert report["registers"] * report["threads"] <= 65536, report
        assert report["shared"] <= SHARED[arch], report
        if dtype != "float32" and report["kernel"] in PRODUCTS:
            assert report["matrix"] > 0, report
            assert report["async_copies"] > 0, report  # pipelined
            assert (report["wgmma"] == report["matrix"]) == (arch == 90), report
