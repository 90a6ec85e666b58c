"""Everything that a run needs to go on bitwise, and its way into a checkpoint and back.

State dicts are collected on every rank (full, on the CPU), so sharded networks are saved like any other, and one rank
writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.training.average import HostAverage
from contrastive_i2v.training.checkpoint import (
    WHOLE,
    TensorGroups,
    load_last_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from contrastive_i2v.training.logs import Row, read_rows

T = TypeVar("T")

COUNTERS = ("nonfinite_steps", "nonfinite_in_a_row")


class Stateful(Protocol):
    """What a checkpoint can hold: modules, and whatever else has tensors by name."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Tensors that it goes on from."""

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> Any:
        """The inverse of `state_dict`."""


@dataclass(kw_only=True)
class RunState:
    """What changes while a run goes on."""

    accelerator: Accelerator
    network: nn.Module
    """As accelerate prepared it."""
    trainable: list[nn.Parameter]
    optimizer: Any
    ema: EMAModel | None
    beside: Mapping[str, Stateful]
    """What else goes on, the same in every process, by its file's name in a checkpoint."""
    base: str | None = None
    """A hash of the model that adapters are trained on: checkpoints leave out what isn't trained; None = they hold
    the whole network."""
    step: int = 0
    nonfinite_steps: int = 0
    nonfinite_in_a_row: int = 0
    unlogged: list[list[Row]] = field(default_factory=list)
    """The figures of each micro-batch, by step, since the last log line."""

    def save(self, folder: Path, *, keep: int) -> None:
        """Write `folder/step-{step}`; every rank calls it."""
        weights = self.weights()
        moments, groups = pack_optimizer(self.network, self._inner_optimizer())
        averaged = self.with_average(self.weights) if self.ema else {}
        if self.accelerator.is_main_process:
            tensors: dict[str, Mapping[str, Tensor]] = {"network": weights, "optimizer": moments}
            state: dict[str, Any] = {name: getattr(self, name) for name in COUNTERS}
            state |= {"groups": groups, "unlogged": read_rows(self.unlogged)}
            if self.base is not None:
                state["base"] = self.base
            tensors |= {name: part.state_dict() for name, part in self.beside.items()}
            if self.ema:
                tensors["ema"], state["ema_step"] = averaged, self.ema.optimization_step
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            save_checkpoint(folder, self.step, tensors, state, keep=keep)
        self.accelerator.wait_for_everyone()

    def restore(self, folder: Path) -> None:
        """Take over the last checkpoint below `folder` that is whole. Raises InputError where none is, or where it is
        of another network."""
        checkpoint, tensors, state = load_last_checkpoint(folder)
        if state.get("base") != self.base:
            raise InputError(
                f"{checkpoint}: is of adapters, and the model that they were trained on has other weights now; "
                "expected that model, or start again in a new --output"
            )
        try:
            self._take_over(tensors, state)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{checkpoint}: doesn't fit this run ({one_line(error)}); was it written by another version, or for "
                "another network? Start again in a new --output"
            ) from error

    def _take_over(self, tensors: TensorGroups, state: dict[str, Any]) -> None:
        if self.ema:
            self._load(tensors["ema"])
            for shadow, parameter in zip(self.ema.shadow_params, self.trainable, strict=True):
                shadow.copy_(parameter.detach())
            self.ema.optimization_step = state["ema_step"]
        self._load(tensors["network"])
        unpack_optimizer(self.network, self._inner_optimizer(), tensors["optimizer"], state["groups"])
        for name, part in self.beside.items():
            part.load_state_dict(tensors[name])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.unlogged = state["step"], state["unlogged"]
        for name in COUNTERS:
            setattr(self, name, state[name])

    def with_average(self, act: Callable[[], T]) -> T:
        """Run `act` with the averaged weights in the network."""
        if self.ema is None:
            return act()
        if isinstance(self.ema, HostAverage):
            self.ema.settle()
        self.ema.store(self.trainable)
        self.ema.copy_to(self.trainable)
        try:
            return act()
        finally:
            self.ema.restore(self.trainable)

    def weights(self) -> dict[str, Tensor]:
        """The network's, whole, on the main process's CPU; every rank calls it."""
        weights: dict[str, Any] = get_model_state_dict(self.network, options=self._options())
        return {name: value.clone() for name, value in weights.items()}

    def _load(self, weights: dict[str, Any]) -> None:
        set_model_state_dict(self.network, weights, options=self._options())

    def _options(self) -> StateDictOptions:
        return WHOLE if self.base is None else replace(WHOLE, ignore_frozen_params=True, strict=False)

    def _inner_optimizer(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner
