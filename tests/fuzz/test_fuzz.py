"""Every target for ten seconds; CI2V_FUZZ_SECONDS and CI2V_FUZZ_SEED say otherwise, and `make fuzz` runs on."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fuzzing import TARGETS, fuzz, mutate  # noqa: E402

SECONDS = float(os.environ.get("CI2V_FUZZ_SECONDS", "10"))
SEED = int(os.environ.get("CI2V_FUZZ_SEED", "0"))


@pytest.mark.fuzz
@pytest.mark.timeout(SECONDS + 290)
@pytest.mark.parametrize("target", TARGETS)
def test_it_keeps_its_promises_whatever_comes_in(target: str) -> None:
    counts: dict[str, int] = {}
    for failure in fuzz(target, SEED, SECONDS, counts):
        saved = Path(__file__).parents[2] / "build" / "fuzz" / f"{target}-{SEED}-{failure.index}"
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_bytes(failure.case)
        pytest.fail(
            f"{target}, seed {SEED}, input {failure.index}: {failure.reason}\n"
            f"replay: python tests/fuzz {target} {saved}"
        )
    assert counts[target] > 0


def test_inputs_are_a_function_of_the_seed_alone() -> None:
    first, again = (mutate(random.Random("3"), bytes(range(99)), b"other", words=(b"word",)) for _ in range(2))
    assert first == again != bytes(range(99))
