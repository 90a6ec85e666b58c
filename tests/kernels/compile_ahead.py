"""Compiles what the launchers would launch, without a GPU, and prints what the chip would be given as JSON lines.

Run as a program in a process of its own: `compile_ahead.py ARCH DTYPE`. The launchers run on CPU tensors with every
kernel replaced by a recorder, so arguments, block sizes and options are the launchers' own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from contrastive_i2v.kernels import arguments, dispatch, large, small
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "maxnreg")
QUERIES = (4096, 256)


class Recorder:
    """Stands for a kernel: remembers one launch of every specialisation."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, dict[str, Any], dict[str, Any]]]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: Any) -> Any:
        def launch(*values: Any, **named: Any) -> None:
            options = {name: named.pop(name) for name in OPTIONS if name in named}
            given = dict(zip(self.kernel.arg_names, values, strict=False)) | named
            assert list(given) == self.kernel.arg_names
            self.launches.append((self.kernel, given, options))

        return launch


def specialise(kernel: Any, given: dict[str, Any]) -> ASTSource:
    """What triton's launcher would compile for these arguments."""
    signature, constants, attributes = {}, {}, {}
    for index, (param, value) in enumerate(zip(kernel.params, given.values(), strict=True)):
        kind, aligned = "constexpr", False
        if param.is_constexpr or value is None:
            constants[(index,)] = value
        elif isinstance(value, torch.Tensor):
            kind, aligned = TYPES[value.dtype], True
        elif isinstance(value, float):
            kind = "fp32"
        elif value == 1 and not param.do_not_specialize:
            constants[(index,)] = 1
        else:
            kind, aligned = "i32", value % 16 == 0 and not param.do_not_specialize
        signature[param.name] = kind
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers a thread, and the instructions of the machine code that touch local memory, which are spills."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def ask(tool: str, *flags: str) -> str:
        return subprocess.run([tools / tool, *flags, path], check=True, capture_output=True, text=True).stdout

    usage, code = ask("cuobjdump", "--dump-resource-usage"), ask("nvdisasm", "-c")
    assert "EXIT" in code
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[-1]),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
    }


def record(arch: int, dtype: torch.dtype, normalize: bool) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Every launch of a small and of a large call."""
    launches: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []
    for module in (small, large):
        for name, value in list(vars(module).items()):
            if isinstance(value, triton.runtime.JITFunction) and name.endswith("_kernel"):
                setattr(module, name, Recorder(value, launches))
    arguments.device_arch = lambda device: arch
    large.multiprocessors = lambda device: 132 if arch == 90 else 108
    for queries in QUERIES:
        latents = [torch.empty(queries, 4096, dtype=dtype) for _ in range(3)]
        banks = [torch.empty(queries, 4096, dtype=dtype) for _ in range(2)]
        rows = [torch.empty(queries) for _ in range(2)]
        rest = ([], None, 1.0, [0.5, 0.5], None, None, None, [], normalize, True)
        dispatch.diffusion_loss(*latents, *rows, banks, *rest)
    return launches


def main(arch: int, dtype: torch.dtype, normalize: bool, folder: Path) -> None:
    target = GPUTarget("cuda", arch, 32)
    done = set()
    for kernel, given, options in record(arch, dtype, normalize):
        source = specialise(kernel, given)
        key = (kernel.__name__, source.hash(), str(options))
        if key in done:
            continue
        done.add(key)
        compiled = triton.compile(source, target=target, options=options)
        ptx = compiled.asm["ptx"]
        report = {
            "kernel": kernel.__name__,
            "matrix": len(re.findall(r"wgmma\.mma_async|mma\.sync", ptx)),
            "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
            "async_copies": len(re.findall(r"cp\.async\.c[ag]", ptx)),
            "shared": compiled.metadata.shared,
            "threads": 32 * compiled.metadata.num_warps,
            **resources(compiled.asm["cubin"], folder),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3] == "cosine", Path(sys.argv[4]))
