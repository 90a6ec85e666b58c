"""The Inception v3 of FID: the graph of 2015-12-05 with 1008 logits, under the names of its public PyTorch weights.

It differs from the common Inception v3 in its averages, which leave the padding out, and in the last block's
pool, which is a maximum. Szegedy et al., "Rethinking the Inception Architecture" (2015); the graph is the one
that Salimans et al. (2016) and Heusel et al. (2017) published their scores with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kernel = int | tuple[int, int]
Step = tuple[int, Kernel] | tuple[int, Kernel, int] | tuple[int, Literal["fork"]]
"""(channels, kernel[, stride]), or (channels, "fork"): a 1 x 3 and a 3 x 1 side by side."""
LOGITS = 1008
SIZE = 299


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU; padded to keep the size unless strided or told not to."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, *, padded: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches of convolutions over one input and a pool of it, concatenated.

    The i-th step of branch "b" is the submodule "b_i" ("b" where it is the only one; "b_ia" and "b_ib" for a fork);
    the pool's convolution is "branch_pool".
    """

    def __init__(
        self,
        channels: int,
        branches: Mapping[str, Sequence[Step]],
        pool: Literal["average", "maximum", "halving maximum"],
        pool_channels: int = 0,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.branches: list[list[list[str]]] = []
        for branch, steps in branches.items():
            width, chain = channels, []
            for index, (out, kernel, *stride) in enumerate(steps, start=1):
                name = branch if len(steps) == 1 else f"{branch}_{index}"
                if kernel == "fork":
                    parts = {f"{name}a": Convolution(width, out, (1, 3)), f"{name}b": Convolution(width, out, (3, 1))}
                else:
                    parts = {name: Convolution(width, out, kernel, *stride)}
                for part, module in parts.items():
                    self.add_module(part, module)
                chain.append(list(parts))
                width = out * len(parts)
            self.branches.append(chain)
        if pool != "halving maximum":
            self.branch_pool = Convolution(channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.branches:
            y = x
            for parts in chain:
                y = torch.cat([self.get_submodule(part)(y) for part in parts], dim=1)
            outputs.append(y)
        return torch.cat([*outputs, self._pooled(x)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halving maximum":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "maximum":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        y: Tensor = self.branch_pool(pooled)
        return y


def _wide(channels: int, pool_channels: int) -> Mixed:
    """35 x 35."""
    branches: dict[str, Sequence[Step]] = {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
    }
    return Mixed(channels, branches, "average", pool_channels)


def _factorised(channels: int) -> Mixed:
    """17 x 17: 7 x 7 as 1 x 7 and 7 x 1."""
    branches: dict[str, Sequence[Step]] = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(channels, 1), (channels, (1, 7)), (192, (7, 1))],
        "branch7x7dbl": [(channels, 1)]
        + [(channels, (7, 1)), (channels, (1, 7))]
        + [(channels, (7, 1)), (192, (1, 7))],
    }
    return Mixed(768, branches, "average", 192)


def _forked(channels: int, pool: Literal["average", "maximum"]) -> Mixed:
    """8 x 8."""
    branches: dict[str, Sequence[Step]] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), (384, "fork")],
        "branch3x3dbl": [(448, 1), (384, 3), (384, "fork")],
    }
    return Mixed(channels, branches, pool, 192)


class InceptionV3(nn.Module):
    """Pixels `[N, 3, 299, 299]`, scaled to (x - 128) / 128, -> pooled features `[N, 2048]`; `fc` gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        self.Mixed_5b = _wide(192, 32)
        self.Mixed_5c = _wide(256, 64)
        self.Mixed_5d = _wide(288, 64)
        halve: dict[str, Sequence[Step]] = {"branch3x3": [(384, 3, 2)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)]}
        self.Mixed_6a = Mixed(288, halve, "halving maximum")
        self.Mixed_6b = _factorised(128)
        self.Mixed_6c = _factorised(160)
        self.Mixed_6d = _factorised(160)
        self.Mixed_6e = _factorised(192)
        halve = {
            "branch3x3": [(192, 1), (320, 3, 2)],
            "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
        }
        self.Mixed_7a = Mixed(768, halve, "halving maximum")
        self.Mixed_7b = _forked(1280, "average")
        self.Mixed_7c = _forked(2048, "maximum")
        self.fc = nn.Linear(2048, LOGITS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [N, 64, 147, 147]
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # [N, 192, 71, 71]
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # [N, 288, 35, 35]
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # [N, 768, 17, 17]
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [N, 2048, 8, 8]
        return x.mean(dim=(2, 3))
