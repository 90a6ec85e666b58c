"""The layers that a loss learns beside the network.

They are no part of the network, so they have an optimizer of their own, of the same settings and learning rate; their
gradient is the mean over the processes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import TrainConfig


class LearnedProjection:
    """Everything that moves a loss's parameters.

    Args:
        loss: the loss, its parameters initialised alike in every process.
        option: of the loss, for errors.
        ema_decay: of a moving average, which decays as the network's does; 0 = none.

    Raises InputError for mixed_precision fp16, whose loss scale is the network's alone.
    """

    def __init__(
        self, loss: nn.Module, config: TrainConfig, accelerator: Accelerator, *, option: str, ema_decay: float
    ) -> None:
        if config.mixed_precision == "fp16":
            raise InputError(f"loss.{option}: there is none with mixed_precision=fp16; expected bf16 or no")
        self.module, self.accelerator = loss.to(accelerator.device), accelerator
        self.parameters = list(loss.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"),  # it never waits for the device
        )
        self.ema = EMAModel(self.parameters, decay=ema_decay) if ema_decay else None

    def step(self, learning_rate: float, *, finite: bool) -> None:
        """Move the parameters by the gradient that was summed up; without a finite one forget it."""
        if finite:
            for parameter in self.parameters:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            if self.ema:
                self.ema.step(self.parameters)
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that training goes on from."""
        state = {f"weights.{name}": value for name, value in self.module.state_dict().items()}
        for number, parameter in enumerate(self.parameters):
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        if self.ema:
            state |= {f"ema.{number}": value for number, value in enumerate(self.ema.shadow_params)}
            state["ema_step"] = torch.tensor(self.ema.optimization_step)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        self.module.load_state_dict(below("weights."))
        for number, parameter in enumerate(self.parameters):
            moments = below(f"optimizer.{number}.")
            if moments:
                self.optimizer.state[parameter] = {name: value.to(parameter.device) for name, value in moments.items()}
        if self.ema:
            for number, shadow in enumerate(self.ema.shadow_params):
                shadow.copy_(state[f"ema.{number}"])
            self.ema.optimization_step = int(state["ema_step"])
