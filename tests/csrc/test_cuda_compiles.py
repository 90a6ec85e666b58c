"""The CUDA kernel compiled ahead of time for Ampere and Hopper: nothing spills, it fits the chip, and the
instructions that it is written for are there. Needs nvcc, no GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.emulator

SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "diffusion_loss.cu"
ARCHITECTURES = ("sm_80", "sm_90a")
DTYPES = {"float": "If", "half": "6__half", "bfloat16": "13__nv_bfloat16"}
THREADS = 256
REGISTERS = 65_536  # of a multiprocessor, on every architecture here
MATRIX = re.compile(r"\b(HMMA|HGMMA)\.")


def _fail_or_skip(why: str) -> None:
    if os.environ.get("CI2V_REQUIRE_CUDA") == "1":
        pytest.fail(f"CI2V_REQUIRE_CUDA=1, but {why}")
    pytest.skip(why)


class Kernel(NamedTuple):
    """What ptxas says of one kernel for one architecture."""

    stack: int
    spill_stores: int
    spill_loads: int
    registers: int
    static_shared: int


class Build(NamedTuple):
    object_file: Path
    kernels: dict[tuple[str, str], Kernel]


def parse(report: str) -> dict[tuple[str, str], Kernel]:
    """(architecture, dtype) -> its kernel, from the output of `ptxas -v`."""
    found = {}
    for entry in re.split(r"Compiling entry function ", report)[1:]:
        name, architecture = re.match(r"'(\S+)' for '(\S+)'", entry).groups()  # type: ignore[union-attr]
        dtype = next(dtype for dtype, mangled in DTYPES.items() if mangled in name)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        assert frame and registers, entry
        stack, stores, loads = (int(number) for number in frame.groups())
        size = int(shared.group(1)) if shared else 0
        found[architecture, dtype] = Kernel(stack, stores, loads, int(registers.group(1)), size)
    return found


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        _fail_or_skip("there is no nvcc")
    if not SOURCE.exists():
        _fail_or_skip("needs the source tree")
    out = tmp_path_factory.mktemp("nvcc") / "diffusion_loss.o"
    targets = [f"-gencode=arch=compute_{name[3:]},code={name}" for name in ARCHITECTURES]
    flags = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings"]
    done = subprocess.run(
        [str(nvcc), *flags, *targets, "-c", str(SOURCE), "-o", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Build(out, parse(done.stdout + done.stderr))


@pytest.fixture(scope="session")
def assembly(build: Build) -> dict[tuple[str, str], str]:
    """(architecture, dtype) -> machine code as text."""
    tool = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if tool is None and triton is not None and triton.origin is not None:
        packaged = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        tool = str(packaged) if packaged.exists() else None
    if tool is None:
        _fail_or_skip("there is no cuobjdump")
    text = subprocess.run([str(tool), "-sass", str(build.object_file)], capture_output=True, text=True, check=True)
    found = {}
    for part in re.split(r"\barch = ", text.stdout)[1:]:
        architecture = part.split()[0]
        for code in part.split("Function : ")[1:]:
            dtype = next(dtype for dtype, mangled in DTYPES.items() if mangled in code.split()[0])
            found[architecture, dtype] = code
    return found


def test_one_kernel_a_dtype_and_architecture(build: Build) -> None:
    assert set(build.kernels) == {(architecture, dtype) for architecture in ARCHITECTURES for dtype in DTYPES}


def test_nothing_spills(build: Build) -> None:
    for which, kernel in build.kernels.items():
        assert (kernel.stack, kernel.spill_stores, kernel.spill_loads) == (0, 0, 0), which


def test_registers_and_shared_memory_fit(build: Build) -> None:
    """All shared memory is dynamic, so the plan, whose limits test_device_math.py holds, knows all of it."""
    for which, kernel in build.kernels.items():
        assert -(-kernel.registers // 8) * 8 * THREADS <= REGISTERS, which
        assert kernel.static_shared == 0, which


def test_16_bit_kernels_use_tensor_cores_and_float_does_not(assembly: dict[tuple[str, str], str]) -> None:
    for (architecture, dtype), code in assembly.items():
        assert bool(MATRIX.search(code)) == (dtype != "float"), (architecture, dtype)
    for architecture in ARCHITECTURES:
        assert ".BF16" in assembly[architecture, "bfloat16"]
        assert assembly[architecture, "float"].count("FFMA") > 500


def test_copies_are_asynchronous_and_no_register_is_indexed_in_memory(assembly: dict[tuple[str, str], str]) -> None:
    for which, code in assembly.items():
        assert "LDGSTS" in code, which
        assert not re.search(r"\b(LDL|STL)\b", code), which


def test_clusters_only_on_hopper(assembly: dict[tuple[str, str], str]) -> None:
    for (architecture, dtype), code in assembly.items():
        assert ("UCGABAR" in code) == (architecture == "sm_90a"), (architecture, dtype)


def test_no_atomic_adds_a_float(assembly: dict[tuple[str, str], str]) -> None:
    """The one atomic operation is the grid barrier's count."""
    for which, code in assembly.items():
        assert not re.search(r"\b(RED|ATOM|ATOMG|ATOMS)\.[A-Z0-9.]*F(16|32|64)", code), which
