"""The text-frame loss in the trainer: its projection is trained, averaged and saved beside the network.

It is no part of the network, so it has an optimizer of its own, of the same settings and learning rate; its gradient is
the mean over the processes, its moving average decays as the network's does, and the model's folder gets it as
`text_frames.safetensors` with a `text_frames.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import Tensor

from contrastive_i2v.errors import InputError
from contrastive_i2v.files import write_whole
from contrastive_i2v.losses import TextFrameLoss, TextFrameOutput
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import System
from contrastive_i2v.training.config import TrainConfig
from contrastive_i2v.training.inputs import Inputs

FILE = "text_frames"
INITIAL_STD = 0.02


class TextFrames:
    """The loss, and everything that moves its projection.

    Raises InputError for mixed_precision fp16, whose loss scale is the network's alone.
    """

    def __init__(self, config: TrainConfig, system: System, accelerator: Accelerator) -> None:
        if config.mixed_precision == "fp16":
            raise InputError("loss.text_weight: there is none with mixed_precision=fp16; expected bf16 or no")
        codec = system.codec
        latent = (codec.channels, *(side // codec.downscale for side in system.size))
        width = system.caption_features(system.encode_text([""])).shape[1]
        options = config.loss
        self.loss = TextFrameLoss(
            system.schedule, width, latent, weight=options.text_weight, temperature=options.temperature
        )
        with torch.no_grad():
            weight = self.loss.projection.weight
            weight.copy_(INITIAL_STD * torch.randn(weight.shape, generator=seeded(config.seed, "text frames")))
            self.loss.projection.bias.zero_()
        self.loss.to(accelerator.device)
        self.accelerator, self.about = accelerator, {"features": width, "latent_shape": list(latent)}
        self.parameters = list(self.loss.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"),  # it never waits for the device
        )
        self.ema = EMAModel(self.parameters, decay=config.ema_decay) if config.ema_decay else None

    def __call__(self, prediction: Tensor, inputs: Inputs) -> TextFrameOutput:
        """The loss of a batch, a row a generated frame."""
        out: TextFrameOutput = self.loss(
            prediction.reshape(-1, *self.loss.latent_shape),
            inputs.noisy_latents.flatten(0, 1),
            inputs.timesteps_by_frame,
            inputs.captions,
            inputs.groups,
            inputs.has_text,
        )
        return out

    def step(self, learning_rate: float, *, finite: bool) -> None:
        """Move the projection by the gradient that was summed up; without a finite one forget it."""
        if finite:
            for parameter in self.parameters:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            if self.ema:
                self.ema.step(self.parameters)
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        """Write the projection, averaged if there is an average, into a model's folder."""
        names = [name for name, _ in self.loss.named_parameters()]
        values = self.ema.shadow_params if self.ema else self.parameters
        tensors = {name: value.detach().cpu().contiguous() for name, value in zip(names, values, strict=True)}
        text = json.dumps({**self.about, "temperature": self.loss.temperature}, indent=2) + "\n"
        write_whole(folder / f"{FILE}.safetensors", lambda part: save_file(tensors, part))
        write_whole(folder / f"{FILE}.json", lambda part: part.write_text(text, encoding="utf-8"))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that training goes on from."""
        state = {f"weights.{name}": value for name, value in self.loss.state_dict().items()}
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

        self.loss.load_state_dict(below("weights."))
        for number, parameter in enumerate(self.parameters):
            moments = below(f"optimizer.{number}.")
            if moments:
                self.optimizer.state[parameter] = {name: value.to(parameter.device) for name, value in moments.items()}
        if self.ema:
            for number, shadow in enumerate(self.ema.shadow_params):
                shadow.copy_(state[f"ema.{number}"])
            self.ema.optimization_step = int(state["ema_step"])
