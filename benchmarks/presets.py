"""Lists of cases that belong together, the most telling first: what a time limit cuts is the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.problems import Case
from benchmarks.registry import COMPILE, EAGER, GEMM, OURS

SMALL = (16, 48, 192, 768)
KERNELS = (f"{OURS}cpu", f"{OURS}triton", f"{OURS}cuda")
FEW = (EAGER, *KERNELS, GEMM)
PEERS_TOO = ("Inf-CL", "Cut Cross Entropy", "Liger", "quack")
UNCOUNTED = (COMPILE, GEMM)
"""Whose kernels aren't counted."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A case with what is particular about it."""

    case: Case
    only: Sequence[str] = ()
    """Beginnings of the providers' names that run; none is all."""
    rounds: int | None = None
    memory: bool = False
    kernels: bool = False
    """Count the GPU kernels of a step, after all else: a profiler that has run may slow what comes after it."""

    def takes(self, name: str) -> bool:
        return not self.only or name.startswith(tuple(self.only))


def cpu() -> list[Plan]:
    """The sizes of the goals."""
    both = ("float32", "bfloat16")
    plans = [Plan(case=Case(size=size, dtype=dtype)) for dtype in both for size in SMALL]
    lean = (EAGER, f"{OURS}cpu")
    plans += [Plan(case=Case(size=4096, dtype=dtype), only=lean, rounds=1, memory=True) for dtype in both]
    for normalize, banks in ((True, 2), (False, 1)):
        for dtype in both:
            sizes = SMALL if dtype == "float32" else SMALL[:2]
            for size in sizes:
                plans.append(Plan(case=Case(size=size, dtype=dtype, banks=banks, normalize=normalize), only=FEW))
    return plans


def gpu() -> list[Plan]:
    """The goals, the sizes between them, and the other forms of the problem, on one GPU."""
    base = Case(size=16, dtype="bfloat16", cache="cold", device="cuda")
    fast = (*FEW, *PEERS_TOO)  # all but torch.compile, which takes seconds a case
    plans = [Plan(case=replace(base, size=size), memory=True, kernels=True) for size in (16, 256, 4096)]
    plans.append(Plan(case=replace(base, size=32768), only=(COMPILE, *fast), memory=True))
    plans.append(Plan(case=replace(base, size=65536), only=(*KERNELS, "quack", GEMM), rounds=5, memory=True))
    plans += [Plan(case=replace(base, size=size), only=fast, memory=True) for size in (64, 1024, 16384)]
    plans += [Plan(case=replace(base, size=size, cache="hot"), only=fast) for size in (16, 256)]
    plans += [Plan(case=replace(base, size=size, normalize=True), only=fast) for size in (16, 256, 4096)]
    plans += [Plan(case=replace(base, size=size, dtype="float32"), only=fast) for size in (16, 256, 4096)]
    plans += [Plan(case=replace(base, size=size, banks=1), only=fast) for size in (16, 4096)]
    plans += [Plan(case=replace(base, size=1024, elements=elements), only=fast) for elements in (1024, 16384)]
    plans += [Plan(case=replace(base, size=size, dtype="float16"), only=fast) for size in (256,)]
    return plans


def full(device: str) -> list[Plan]:
    """Every size, number of elements, dtype, form and cache; takes hours on a CPU."""
    sizes = (16, 48, 64, 192, 256, 768, 1024, 4096, *((16384, 32768, 65536) if device == "cuda" else ()))
    dtypes = ("float32", "bfloat16", *(("float16",) if device == "cuda" else ()))
    plans = []
    for elements in (4096, 1024, 16384):
        for size in sizes:
            if size * elements > 65536 * 4096:
                continue  # does not fit beside its copies
            for dtype in dtypes:
                for banks, normalize in ((2, False), (2, True), (1, False)):
                    for cache in ("hot", "cold"):
                        case = Case(
                            size=size, elements=elements, dtype=dtype, banks=banks, normalize=normalize, cache=cache,
                            device=device,
                        )  # fmt: skip
                        plans.append(Plan(case=case, memory=cache == "hot" and size >= 768))
    return plans


def named(name: str, device: str) -> list[Plan]:
    return {"cpu": cpu, "gpu": gpu}[name]() if name != "full" else full(device)


PRESETS = {"cpu": "cpu", "gpu": "cuda", "full": None}
"""Name -> the device it is for."""
