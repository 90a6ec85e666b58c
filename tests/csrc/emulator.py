"""Builds `emulator.cpp` and calls it: the CUDA kernel's own source, run thread by thread on the CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("emulator.cpp")
DOES_NOT_FIT, FAILURES = 1, {2: "a barrier that not everyone reaches", 3: "a write out of bounds"}
HOPPER = (232_448, (132, 132, 132, 128))  # shared memory of a CTA, resident CTAs in clusters of 1, 2, 4, 8
AMPERE = (166_912, (108, 0, 0, 0))


class Call(ctypes.Structure):
    _fields_ = [
        ("element_size", ctypes.c_int),
        ("is_half", ctypes.c_int),
        ("queries", ctypes.c_int64),
        ("elements", ctypes.c_int64),
        ("banks", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("counts", "prediction", "noisy", "target", "c_skip", "c_out")),
        *((name, ctypes.c_void_p) for name in ("mse_weights", "contrastive_weights", "query_groups")),
        *((name, ctypes.c_void_p) for name in ("bank_rows", "positives", "bank_groups", "bank_weights")),
        ("temperature_tensor", ctypes.c_void_p),
        ("temperature", ctypes.c_double),
        ("normalize", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("ctas", ctypes.c_void_p),
        ("seed", ctypes.c_uint),
        *((name, ctypes.c_void_p) for name in ("gradient", "loss", "mse", "contrastive", "chosen")),
    ]


class Chosen(NamedTuple):
    """How the plan cut the problem."""

    row_blocks: int
    slices: int
    slice_width: int
    cluster: int
    one_barrier: int
    shared_bytes: int
    unit_pairs: int
    last: int  # whether rows are aligned; of `plan`, the rows of a block


class Result(NamedTuple):
    loss: Tensor
    mse: Tensor
    contrastive: Tensor
    gradient: Tensor
    chosen: Chosen


def why_not() -> str:
    """Why the emulator cannot be built here; "" when it can."""
    if not SOURCE.parents[2].joinpath("csrc", "cuda", "kernel.cuh").exists():
        return "needs the source tree"
    return "" if shutil.which("c++") else "there is no C++ compiler (c++)"


def build(folder: Path) -> ctypes.CDLL:
    """Compiles the emulator into `folder`."""
    library = folder / "emulator.so"
    command = ["c++", "-std=c++20", "-O2", "-U_FORTIFY_SOURCE", "-shared", "-fPIC"]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    subprocess.run([*command, *warnings, str(SOURCE), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def _pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p] | None:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors)) if tensors else None


def plan(
    library: ctypes.CDLL,
    queries: int,
    candidates: int,
    elements: int,
    banks: int,
    element_size: int,
    limits: tuple[int, tuple[int, ...]],
) -> tuple[int, Chosen]:
    """(bytes of workspace or -1 when the problem does not fit, how it is cut)."""
    chosen = (ctypes.c_int * 8)()
    library.plan_shared_bytes.restype = ctypes.c_int64
    sizes = (ctypes.c_int64(queries), ctypes.c_int64(candidates), ctypes.c_int64(elements))
    size = library.plan_shared_bytes(*sizes, banks, element_size, limits[0], (ctypes.c_int * 4)(*limits[1]), chosen)
    return size, Chosen(*chosen)


def run(
    library: ctypes.CDLL,
    arguments: dict[str, Any],
    *,
    limits: tuple[int, tuple[int, ...]],
    seed: int = 0,
    gradient: bool = True,
) -> Result | None:
    """The kernel on the arguments of `contrastive_diffusion_loss`; None when it does not fit the limits."""
    latents = [arguments[name].flatten(1).contiguous() for name in ("prediction", "noisy", "target")]
    banks = [bank.flatten(1).contiguous() for bank in arguments["banks"]]
    queries, elements = latents[0].shape
    dtype = latents[0].dtype
    positives = list(arguments.get("positives") or [])
    groups = list(arguments.get("bank_groups") or [])
    weights = arguments.get("bank_weights") or [1 / elements] * len(banks)
    temperature = arguments.get("temperature", 1.0)
    on_device = isinstance(temperature, Tensor)
    optional = {
        name: arguments[name].data_ptr() if arguments.get(name) is not None else None
        for name in ("mse_weights", "contrastive_weights", "query_groups")
    }
    out = Result(
        torch.full((), torch.nan),
        torch.full((), torch.nan),
        torch.full((len(banks),), torch.nan),
        torch.full((queries, elements) if gradient else (0,), torch.nan).to(
            torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        ),
        Chosen(*(0,) * 8),
    )
    chosen = (ctypes.c_int * 8)()
    keep = [
        (ctypes.c_int64 * len(banks))(*(bank.shape[0] for bank in banks)),
        _pointers(banks),
        _pointers(positives),
        _pointers(groups),
        (ctypes.c_double * len(banks))(*weights),
        (ctypes.c_int * 4)(*limits[1]),
    ]
    counts, bank_rows, positive_rows, bank_groups, bank_weights, ctas = (
        None if array is None else ctypes.addressof(array) for array in keep
    )
    prediction, noisy, target = (latent.data_ptr() for latent in latents)
    call = Call(
        element_size=dtype.itemsize,
        is_half=dtype == torch.float16,
        queries=queries,
        elements=elements,
        banks=len(banks),
        counts=counts,
        prediction=prediction,
        noisy=noisy,
        target=target,
        c_skip=arguments["c_skip"].data_ptr(),
        c_out=arguments["c_out"].data_ptr(),
        **optional,
        bank_rows=bank_rows,
        positives=positive_rows,
        bank_groups=bank_groups,
        bank_weights=bank_weights,
        temperature_tensor=temperature.data_ptr() if on_device else None,
        temperature=1.0 if on_device else temperature,
        normalize=bool(arguments.get("normalize")),
        shared_bytes=limits[0],
        ctas=ctas,
        seed=seed,
        gradient=out.gradient.data_ptr() if gradient else None,
        loss=out.loss.data_ptr(),
        mse=out.mse.data_ptr(),
        contrastive=out.contrastive.data_ptr(),
        chosen=ctypes.addressof(chosen),
    )
    status = library.run_kernel(ctypes.byref(call))
    if status == DOES_NOT_FIT:
        return None
    assert status == 0, FAILURES[status]
    return out._replace(chosen=Chosen(*chosen))
