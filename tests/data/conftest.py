"""Clips of noise, and `toy` and `encoding` for the tests here: importlib mode puts no test folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


@pytest.fixture
def clips(tmp_path: Path) -> list[Any]:
    """Three of 60 frames, 12 of them valid, with captions of their own."""
    from encoding import write_noise

    from contrastive_i2v.data.types import Clip

    return [Clip(write_noise(tmp_path / f"{i}.mp4", seed=i), f"caption {i}") for i in range(3)]
