"""Every target for ten seconds; CI2V_FUZZ_SECONDS and CI2V_FUZZ_SEED say otherwise, and `make fuzz` runs on."""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fuzzing  # noqa: E402
from fuzzing import TARGETS, fuzz, mutate, report  # noqa: E402

SECONDS = float(os.environ.get("CI2V_FUZZ_SECONDS", "10"))
SEED = int(os.environ.get("CI2V_FUZZ_SEED", "0"))


@pytest.mark.fuzz
@pytest.mark.timeout(SECONDS + 290)
@pytest.mark.parametrize("target", TARGETS)
def test_it_keeps_its_promises_whatever_comes_in(target: str) -> None:
    counts: dict[str, int] = {}
    for failure in fuzz(target, SEED, SECONDS, counts):
        pytest.fail(report(target, SEED, failure))
    assert counts[target] > 0


def test_inputs_are_a_function_of_the_seed_alone() -> None:
    first, again = (mutate(random.Random("3"), bytes(range(99)), b"other", words=(b"word",)) for _ in range(2))
    assert first == again != bytes(range(99))


class Harmful:
    """Some of its inputs end the process, some never end, some break a promise, some take memory."""

    def draw(self, rng: random.Random) -> bytes:
        return rng.choice([b"none"] * 20 + [b"end", b"hang", b"break", b"memory"])

    def check(self, case: bytes) -> None:
        if case == b"end":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif case == b"hang":
            time.sleep(60)
        elif case == b"memory":
            block = mmap.mmap(-1, 64 << 20)  # of new pages, whatever the allocator kept of freed ones
            block[:: mmap.PAGESIZE] = bytes(len(block) // mmap.PAGESIZE)
        assert case != b"break", "a promise"


def test_an_end_a_hang_and_a_broken_promise_are_found_and_the_fuzzer_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "load", lambda name, folder: Harmful())
    monkeypatch.setattr(fuzzing, "CASE_SECONDS", 0.5)
    monkeypatch.setattr(fuzzing, "CASE_BYTES", 32 << 20)
    missing = {"exit status -11", "took longer than 0.5 s", "AssertionError: a promise", "MemoryError: took"}
    for failure in fuzz("harmful", 0, 60):
        missing -= {said for said in missing if said in failure.reason}
        if not missing:
            break
    assert not missing
