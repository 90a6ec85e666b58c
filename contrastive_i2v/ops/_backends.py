"""Which backends there are, why one is missing, and which one a call gets.

The compiled extension is optional. Importing it registers its kernels, so it is imported once, here, after
the schemas.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch

import contrastive_i2v
from contrastive_i2v.kernels import why_unavailable as why_no_triton
from contrastive_i2v.ops import _schema as _schema  # the schemas come before the kernels

BACKENDS = ("reference", "cpu", "triton", "cuda")
# Size decides between those of one device: the single-launch kernel comes first and refuses what it cannot hold.
FASTEST_FIRST = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
# A name leaves this set when `make gpu` has passed on a real GPU, with its figures under benchmarks/results.
UNVERIFIED = frozenset({"triton", "cuda"})
_AVAILABLE = "available"
_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BUILD_HINT = "install with CI2V_BUILD_EXT=1 to build it or to see why it cannot be built"


def load_extension() -> tuple[dict[str, Any] | None, str]:
    """What `_C` was built with (None when it cannot be used) and why it cannot be used ("" when it can)."""
    try:
        extension = importlib.import_module("contrastive_i2v._C")
    except ModuleNotFoundError:
        return None, f"the C++ extension is not built: {_BUILD_HINT}"
    except (ImportError, OSError) as error:
        return None, f"the C++ extension does not load ({error}): rebuild it for torch {torch.__version__}"
    info: dict[str, Any] = extension.build_info()
    return info, extension_mismatch(info)


def extension_mismatch(info: dict[str, Any]) -> str:
    """Why an extension built as `info` says must not be used by this package and this torch; "" when it
    may."""
    ours, theirs = (str(version).split(".")[:2] for version in (torch.__version__, info["torch"]))
    if ours != theirs:
        return (
            f"the C++ extension was built for torch {info['torch']}, this is torch {torch.__version__}: "
            "reinstall with --no-build-isolation"
        )
    if info["version"] != contrastive_i2v.__version__:
        return (
            f"the C++ extension is from contrastive_i2v {info['version']}, "
            f"this is {contrastive_i2v.__version__}: reinstall"
        )
    return ""


_INFO, _WHY_NO_EXTENSION = load_extension()
HAS_CPU_KERNEL = not _WHY_NO_EXTENSION


def build_info() -> dict[str, object]:
    """What the compiled extension was built with, or why there is none.

    Keys: `extension` (bool: built and usable), `reason` (str, "" when usable), `torch` (this torch),
        `python`, and when
    there is an extension `built_with` (its version, torch, compiler, OpenMP, CUDA architectures).
    """
    info: dict[str, object] = {
        "extension": not _WHY_NO_EXTENSION,
        "reason": _WHY_NO_EXTENSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if _INFO is not None:
        info["built_with"] = dict(_INFO)
    return info


def available_backends() -> dict[str, str]:
    """Every backend's name -> "available", or why it is not."""
    return {name: _why_missing(name) or _AVAILABLE for name in BACKENDS}


def _why_missing(name: str) -> str:
    if name == "cpu":
        return _WHY_NO_EXTENSION
    if name == "triton":
        return str(why_no_triton())
    if name == "cuda":
        return _WHY_NO_EXTENSION or _why_no_cuda()
    return ""


def _why_no_cuda() -> str:
    if _INFO is None or not _INFO["cuda_architectures"]:
        return "the extension was built without CUDA: install with CI2V_BUILD_CUDA=1, a CUDA torch and nvcc"
    return "" if torch.cuda.is_available() else "no CUDA device is visible to torch"


def choose(
    backend: str | None,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    more_gradients: tuple[str, ...],
    fits_cuda: Callable[[], bool] = lambda: False,
) -> str:
    """The backend of a call. A name is strict; None takes the fastest that can do the job, else the reference.

    Args:
        backend: what the caller asked for.
        device: where the tensors are.
        dtypes: of the latents and banks.
        more_gradients: what besides the prediction wants a gradient ("banks", "temperature").
        fits_cuda: whether the single-launch kernel holds the problem; only asked where it is built.

    Raises:
        ValueError: for a name that is no backend.
        RuntimeError: for a named backend that is missing or cannot do the job.
    """
    if backend == "reference":
        return backend
    if backend is not None:
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}: expected None or one of {', '.join(BACKENDS)}")
        why_not = _why_missing(backend) or _why_not(backend, device, dtypes, more_gradients)
        if why_not:
            raise RuntimeError(f"backend={backend!r} cannot be used: {why_not}. Use backend=None or 'reference'")
        return backend

    reasons = []
    for name in FASTEST_FIRST.get(device.type, ()):
        why_not = _why_missing(name)
        if not why_not and name in UNVERIFIED and not _allow_unverified():
            why_not = (
                f"no real GPU has verified the {name} kernels yet: opt in with backend={name!r}, or with "
                "CI2V_UNVERIFIED_KERNELS=1 for all"
            )
        if why_not:
            reasons.append(why_not)
        elif not _why_not(name, device, dtypes, more_gradients) and (name != "cuda" or fits_cuda()):
            return name
    if device.type not in FASTEST_FIRST:
        reasons.append(f"there are no kernels for device {device.type!r}")
    if reasons and not torch.compiler.is_compiling():
        _say_once(f"contrastive_diffusion_loss runs as plain PyTorch on {device.type}: {'; '.join(reasons)}")
    return "reference"


def cuda_fits(queries: int, candidates: list[int], elements: int, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether the single-launch CUDA kernel holds this problem on the current device. Not while tracing."""
    if _INFO is None or torch.compiler.is_compiling():
        return False
    extension = importlib.import_module("contrastive_i2v._C")
    size = dtypes[0].itemsize if len(set(dtypes)) == 1 else 4
    return bool(extension.diffusion_loss_cuda_fits(queries, candidates, elements, size))


def _why_not(name: str, device: torch.device, dtypes: tuple[torch.dtype, ...], more_gradients: tuple[str, ...]) -> str:
    """Why a backend that is there cannot do this job; "" when it can."""
    # Triton's interpreter takes CPU tensors.
    home = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",) if torch.cuda.is_available() else ("cpu",)}
    if device.type not in home[name]:
        return f"the tensors are on {device}"
    if more_gradients:
        return f"it gives gradients to the prediction only, and {' and '.join(more_gradients)} require one"
    if any(dtype not in _FUSED_DTYPES for dtype in dtypes):
        return f"it takes float32, bfloat16 and float16, got {', '.join(sorted({str(d) for d in dtypes}))}"
    return ""


def _allow_unverified() -> bool:
    return os.environ.get("CI2V_UNVERIFIED_KERNELS", "0") == "1"


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
