"""Small real clips for the tests of the suite, which may import `evaluating`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contrastive_i2v.evaluation.videos import ReferenceSet, read_reference_set

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode puts no test folder on the path


@pytest.fixture(scope="module", autouse=True)
def _no_umap() -> Iterator[None]:
    """It compiles for longer than the rest of these tests takes; its own tests are those of the maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)
        yield


@pytest.fixture(scope="module")
def reference(clips: Path) -> ReferenceSet:
    return read_reference_set(clips / "train", frames=4, resolution=16)
