"""Offloading on a CPU that shows who computes with weights that aren't there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.models.offloading import OffloadedBlocks


class Watched(OffloadedBlocks):
    """Fills weights that are in the host's memory with what nobody may compute with, and notes the moves."""

    moves: list[str] = []

    def _put_back(self, name: str) -> None:
        self.moves.append(f"-{name}")
        for parameter, host in self.host[name]:
            parameter.data = torch.full_like(host, float("nan") if host.is_floating_point() else 77)

    def _copied(self, host: Tensor) -> Tensor:
        return host.clone()

    def _load(self, name: str, *arguments: Any) -> None:
        self.moves.append(f"+{name}")
        super()._load(name, *arguments)
