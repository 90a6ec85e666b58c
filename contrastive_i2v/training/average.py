"""The moving average of the weights, in the memory of the device or of the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class HostAverage(EMAModel):  # type: ignore[misc]
    """diffusers' EMAModel with the average on the CPU, the same numbers.

    `step` only starts the copy of the weights to the host, into pinned memory; the average takes them in when it is
    next used, mostly in the next `step`. So training never waits for the copy.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        super().__init__([], decay=decay)
        self.pending = False
        cuda = parameters[0].device.type == "cuda"
        self.copied = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        # of leaves that don't require a gradient EMAModel takes no average
        self.arrived = [torch.empty_like(p, device="cpu", pin_memory=cuda).requires_grad_() for p in parameters]
        self.shadow_params: list[Tensor] = [p.detach().to("cpu", copy=True) for p in parameters]

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Start taking in the weights."""
        self.settle()
        for arrived, parameter in zip(self.arrived, parameters, strict=True):
            arrived.copy_(parameter, non_blocking=True)
        if self.copied is not None:
            self.copied.record()
        self.pending = True

    def settle(self) -> None:
        """Let the average be of every step so far."""
        if self.pending:
            if self.copied is not None:
                self.copied.synchronize()
            super().step(self.arrived)
            self.pending = False
