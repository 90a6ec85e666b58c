"""`make gpu` without a GPU refuses clearly; with one that is played by stubs its steps run, fail and are named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), **environment}
    return subprocess.run(
        ["bash", str(SCRIPT)], env=variables, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith(f"make gpu: no CUDA device is visible to torch {torch.__version__}")


def stub(tmp_path: Path, failing: str) -> str:
    """An interpreter for which there is a GPU: it answers the script's questions and notes what it is told to run."""
    path = tmp_path / "python"
    path.write_text(
        f"""#!/usr/bin/env bash
echo "$*" >>{tmp_path}/calls
case "$*" in
  "-m pip"*) [[ "{failing}" != build || $CI2V_BUILD_EXT == 0 ]] ;;
  "-m {failing}"*) echo "{failing} broke"; exit 3 ;;
  *benchmarks*--json*) for last; do :; done; echo '{{}}' >{tmp_path}/out/benchmarks.json ;;
  -) cat >/dev/null; echo 90a ;;
esac
"""
    )
    path.chmod(0o755)
    (tmp_path / "compute-sanitizer").write_text('#!/usr/bin/env bash\necho "tool $2"\n')
    (tmp_path / "compute-sanitizer").chmod(0o755)
    return str(path)


def test_a_failed_step_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    python = stub(tmp_path, failing="pytest")
    done = run(tmp_path, PYTHON=python, PATH=f"{tmp_path}:{os.environ['PATH']}")
    calls = (tmp_path / "calls").read_text()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "make gpu: FAILED: tests\n" in done.stdout
    assert "tests| pytest broke" in done.stdout and "FAILED with status 3" in done.stdout
    assert "-m pip install --no-index --no-build-isolation --no-deps -v -e ." in calls
    assert f"-m benchmarks --preset gpu --json {tmp_path}/out/benchmarks.json --budget" in calls
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "versions.log", "build.log", "tests.log", "sanitizer.log", "benchmarks.log", "benchmarks.json",
        "summary.txt",
    }  # fmt: skip
    assert "tool memcheck" in (tmp_path / "out" / "sanitizer.log").read_text()


def test_the_tests_still_run_when_the_extension_does_not_compile(tmp_path: Path) -> None:
    python = stub(tmp_path, failing="build")
    done = run(tmp_path, PYTHON=python, PATH=f"{tmp_path}:{os.environ['PATH']}", GPU_STEPS="build tests")
    assert done.returncode == 1
    assert "make gpu: FAILED: build\n" in done.stdout and "make gpu: tests: ok" in done.stdout


def test_all_steps_passing_is_success(tmp_path: Path) -> None:
    python = stub(tmp_path, failing="nothing")
    done = run(tmp_path, PYTHON=python, PATH=f"{tmp_path}:{os.environ['PATH']}", GPU_STEPS="build tests")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "make gpu: all steps passed" in done.stdout
    assert "benchmarks" not in (tmp_path / "calls").read_text().replace(str(tmp_path), "")


def test_a_step_past_the_budget_is_not_run_and_fails(tmp_path: Path) -> None:
    python = stub(tmp_path, failing="nothing")
    done = run(tmp_path, PYTHON=python, PATH=f"{tmp_path}:{os.environ['PATH']}", GPU_BUDGET="3")
    assert done.returncode == 1
    assert "tests: not run, the time is up" in done.stdout
