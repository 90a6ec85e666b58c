"""Memory that one batch frees serves the next: on a CPU, asking the system anew for each takes up to a third longer."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

KEPT_BYTES = 2**30
"""glibc serves blocks up to this size from its heap, and keeps so much of what is free at the heap's end."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what tensors free.

    By default blocks of 128 KiB to 32 MiB and more go back to the system at once, and each page of the next tensor is
    cleared again when it is first touched. Nothing is done under another C library, nor where the environment already
    tunes the allocator (MALLOC_..., GLIBC_TUNABLES).
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):  # no mallopt, no way to load the C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
