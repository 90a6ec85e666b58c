"""Representation alignment in the trainer: the frozen encoder, what it sees, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.preparation import IMAGENET_MEAN, IMAGENET_STD, stretch
from contrastive_i2v.evaluation.extractors.weights import load_pretrained
from contrastive_i2v.losses import RepresentationAlignmentLoss
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import System
from contrastive_i2v.training.compute import FORWARD
from contrastive_i2v.training.config import TrainConfig
from contrastive_i2v.training.features import Features
from contrastive_i2v.training.inputs import blank_inputs
from contrastive_i2v.training.projection import LearnedProjection

ENCODERS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
"""Types of transformers' models whose pixels and tokens are prepared alike."""


class PatchEncoder(nn.Module):
    """The patch tokens of a DINOv2 or DINOv3, frozen, in float32.

    Frames are resized so that each side is the nearest multiple of a patch.

    Raises InputError for a source that isn't one of them, can't be loaded or lacks parameters.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: str) -> None:
        super().__init__()
        self.network: Any = load_pretrained(AutoModel.from_pretrained, source, "loss.alignment_encoder")
        kind = self.network.config.model_type
        if kind not in ENCODERS:
            raise InputError(
                f"loss.alignment_encoder={source}: is of type {kind}; expected one of {', '.join(ENCODERS)}, say "
                "facebook/dinov2-base"
            )
        self.patch, self.width = int(self.network.config.patch_size), int(self.network.config.hidden_size)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, frames: Tensor) -> Tensor:
        """`[N, 3, H, W]` in [-1, 1] -> `[N, E, h, w]`, a place a patch."""
        h, w = (max(1, round(side / self.patch)) for side in frames.shape[2:])
        pixels = (stretch(frames, h * self.patch, w * self.patch) + 1) / 2
        tokens: Tensor = self.network(pixel_values=(pixels - self.mean) / self.std).last_hidden_state
        return tokens[:, -h * w :].mT.reshape(len(tokens), -1, h, w)  # the class and register tokens come first


class RepresentationAlignment(LearnedProjection):
    """The loss on a batch, whose clean latents are decoded for the encoder at every step.

    Raises InputError where there is no encoder, or a layer isn't a map a frame.
    """

    def __init__(self, config: TrainConfig, system: System, accelerator: Accelerator) -> None:
        options = config.loss
        if system.codec.temporal_downscale > 1:
            raise InputError(
                f"loss.alignment_weight: the latents of {system.config.kind} aren't of single frames; expected 0"
            )
        self.system = system
        self.encoder = PatchEncoder(str(options.alignment_encoder)).to(accelerator.device)
        self.features = Features(system, options.alignment_layer, option="alignment_layer")
        window, codec = system.window, system.codec
        frame = (codec.channels, *(side // codec.downscale for side in system.size))
        clean = torch.zeros(1, len(window.generated), *frame, device=accelerator.device)
        network = forward_flops(lambda: call_once(system, clean))
        maps = self._maps(1)
        targets = forward_flops(lambda: self.targets(clean))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(config.seed, "alignment").initial_seed())
            self.loss = RepresentationAlignmentLoss(maps.shape[1], self.encoder.width)
        super().__init__(self.loss, config, accelerator, option="alignment_weight", ema_decay=0.0)
        projection = forward_flops(lambda: self.loss.projection(maps.float().movedim(1, -1)))
        self.units = (FORWARD * targets + projection) / network
        """What it adds to a step, in units of the network's forward and backward pass."""

    def __call__(self, clean: Tensor) -> Tensor:
        """The loss of the network's last call. `clean`: `[B, G, C, h, w]`, what it should have generated."""
        with self.accelerator.autocast():
            targets = self.targets(clean)
        loss: Tensor = self.loss(self._maps(len(clean)), targets)
        return loss

    @torch.no_grad()
    def targets(self, clean: Tensor) -> Tensor:
        """`[B, G, C, h, w]` -> `[B G, E, h', w']`."""
        tokens: Tensor = self.encoder(self.system.codec.decode(clean).flatten(0, 1).float())
        return tokens

    def _maps(self, rows: int) -> Tensor:
        """`[rows G, D, h, w]` of the frames that the network generates."""
        maps, window = self.features.take(rows), self.system.window
        if maps.dim() == 5 and maps.shape[1] == window.length:
            maps = torch.stack([maps[:, place] for place in window.generated], dim=1)
        if maps.dim() != 5 or maps.shape[1] != len(window.generated):
            raise InputError(
                "loss.alignment_layer: its output isn't a map [channels, height, width] a frame; expected another layer"
            )
        return maps.flatten(0, 1)


def forward_flops(act: Callable[[], Any]) -> int:
    """FLOP of convolutions and matrix products in a call without gradient."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        act()
    return int(counter.get_total_flops())


def call_once(system: System, clean: Tensor) -> None:
    """Let the network see one window of noise, `[1, G, C, h, w]`, without a prompt."""
    noise, condition = blank_inputs(system, clean)
    system.network.eval()
    system.network(noise, torch.zeros(1, device=clean.device), **condition)
