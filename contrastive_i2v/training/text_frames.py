"""The text-frame loss in the trainer: its projection is trained, averaged and saved beside the network.

The model's folder gets the projection as `text_frames.safetensors` with a `text_frames.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from contrastive_i2v.files import write_whole
from contrastive_i2v.losses import TextFrameLoss, TextFrameOutput
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import System
from contrastive_i2v.training.config import TrainConfig
from contrastive_i2v.training.inputs import Inputs
from contrastive_i2v.training.projection import LearnedProjection

FILE = "text_frames"
INITIAL_STD = 0.02


class TextFrames(LearnedProjection):
    """The loss, and everything that moves its projection."""

    def __init__(self, config: TrainConfig, system: System, accelerator: Accelerator) -> None:
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
        self.about = {"features": width, "latent_shape": list(latent)}
        super().__init__(self.loss, config, accelerator, option="text_weight", ema_decay=config.ema_decay)

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

    def save(self, folder: Path) -> None:
        """Write the projection, averaged if there is an average, into a model's folder."""
        names = [name for name, _ in self.loss.named_parameters()]
        values = self.ema.shadow_params if self.ema else self.parameters
        tensors = {name: value.detach().cpu().contiguous() for name, value in zip(names, values, strict=True)}
        text = json.dumps({**self.about, "temperature": self.loss.temperature}, indent=2) + "\n"
        write_whole(folder / f"{FILE}.safetensors", lambda part: save_file(tensors, part))
        write_whole(folder / f"{FILE}.json", lambda part: part.write_text(text, encoding="utf-8"))
