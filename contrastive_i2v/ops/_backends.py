"""Which backends there are, why one is missing, and which one a call gets.

The compiled extension is optional. Importing it registers its kernels, so it is imported once, here, after
the schemas.
"""

from __future__ import annotations

import functools
import importlib
import platform
import warnings
from typing import Any

import torch

import contrastive_i2v
from contrastive_i2v.ops import _schema as _schema  # the schemas come before the kernels

BACKENDS = ("reference", "cpu", "triton", "cuda")
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
        return "this version has no Triton kernels"
    if name == "cuda":
        return "this version has no CUDA kernels"
    return ""


def uses_reference(
    backend: str | None,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    more_gradients: tuple[str, ...],
) -> bool:
    """True when a call takes the reference, False when it takes the fused op of its device.

    Args:
        backend: a name is strict; None takes the fastest backend that can do the job.
        device: where the tensors are.
        dtypes: of the latents and banks.
        more_gradients: what besides the prediction wants a gradient ("banks", "temperature").

    Raises:
        ValueError: for a name that is no backend.
        RuntimeError: for a named backend that is missing or cannot do the job.
    """
    if backend == "reference":
        return True
    name = device.type if backend is None else backend
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: expected None or one of {', '.join(BACKENDS)}")

    why_not = _why_missing(name) if name in BACKENDS else f"there are no kernels for device {device.type!r}"
    if why_not and backend is None and not torch.compiler.is_compiling():
        _say_once(f"contrastive_diffusion_loss runs as plain PyTorch on {device.type}: {why_not}")
    if not why_not and name == "cpu" and device.type != "cpu":
        why_not = f"the tensors are on {device}"
    if not why_not and more_gradients:
        why_not = f"it gives gradients to the prediction only, and {' and '.join(more_gradients)} require one"
    if not why_not and any(dtype not in _FUSED_DTYPES for dtype in dtypes):
        why_not = f"it takes float32, bfloat16 and float16, got {', '.join(sorted({str(d) for d in dtypes}))}"
    if why_not and backend is not None:
        raise RuntimeError(f"backend={backend!r} cannot be used: {why_not}. Use backend=None or 'reference'")
    return bool(why_not)


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
