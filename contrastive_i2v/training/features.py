"""Features from inside the network, for losses on them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.system import System


class Features:
    """What a layer of the network gave in its last call, by a forward hook. The network stays as it is.

    Raises InputError for a layer that the network hasn't.
    """

    def __init__(self, system: System, layer: str | None, *, option: str = "dispersive_layer") -> None:
        name = layer or system.middle
        modules = dict(system.network.named_modules())
        if name is None or name not in modules:
            raise InputError(
                f"loss.{option}={layer}: the network of {system.config.kind} has no such module; expected a "
                "name of its named_modules(), say unet.mid_block"
            )
        self.option = option
        self.last: Tensor | None = None
        self.batch = 0
        modules[name].register_forward_hook(self._keep)
        system.network.register_forward_pre_hook(self._count)

    def take(self, rows: int) -> Tensor:
        """`[rows, F, *]` of the first rows of the last call; F is 1, or the frames of a window where a layer sees frame
        by frame. Raises InputError where the layer wasn't called, or its output isn't by rows."""
        features, self.last = self.last, None
        if features is None or features.dim() == 0 or len(features) % self.batch:
            raise InputError(f"loss.{self.option}: its output isn't a tensor by rows; expected another layer")
        return features.reshape(self.batch, -1, *features.shape[1:])[:rows]

    def _count(self, module: nn.Module, inputs: Any) -> None:
        self.batch = len(inputs[0])

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        self.last = first if isinstance(first, Tensor) else None
