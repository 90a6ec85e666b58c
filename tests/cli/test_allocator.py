"""Memory that was freed is used again, and nobody's own tuning is touched."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from contrastive_i2v.cli.allocator import keep_freed_memory

keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.free.argtypes = [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def touch(size):
    block = c.malloc(size)
    c.memset(block, 1, size)
    c.free(block)

touch(2**26)  # more than any threshold that glibc finds for itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**environment: str) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | environment, check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's malloc")
def test_freed_memory_is_used_again_unless_the_user_tunes_the_allocator() -> None:
    tuned = page_faults()
    untouched = page_faults(MALLOC_ARENA_MAX="4")
    assert untouched >= 4 * 2**26 // 2**21  # each page of each block, in huge pages at the least
    assert tuned < 16
