"""The video networks that are compared: ours, diffusers' own, and an image UNet that sees each frame for itself.

All have the same widths, and take the same 16 frames. diffusers' UNetMotionModel is AnimateDiff's: the image UNet with
the motion modules that a `MotionAdapter` of default options holds. Its UNet3DConditionModel is ModelScope's: four
temporal convolutions behind every ResNet, and attention over time. Weights are random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.models import consisti2v as ours_consisti2v
from contrastive_i2v.models import emu_video as ours_emu_video
from contrastive_i2v.models.tiny import build_scheduler

FRAMES = 16
CHANNELS = 4
SCHEDULE = NoiseSchedule.from_config(build_scheduler().config)


@dataclass(frozen=True, kw_only=True)
class Size:
    """What all networks of a comparison share."""

    widths: tuple[int, ...]
    attends: tuple[bool, ...]
    """Whether a level has attention."""
    layers: int
    """Of a level."""
    heads: int
    """Of the spatial attention."""
    head_width: int
    """Of a head of UNet3DConditionModel, which takes no number of heads."""
    groups: int
    """Of the group norms."""
    prompt: tuple[int, int]
    """Tokens and their width."""


SIZES = {
    "smallest": Size(
        widths=(16, 32), attends=(False, True), layers=1, heads=2, head_width=8, groups=8, prompt=(4, 16)
    ),
    "tiny": Size(
        widths=(64, 96, 128), attends=(False, True, True), layers=1, heads=4, head_width=16, groups=16, prompt=(32, 64)
    ),
    "sd1.5": Size(
        widths=(320, 640, 1280, 1280),
        attends=(True, True, True, False),
        layers=2,
        heads=8,
        head_width=64,
        groups=32,
        prompt=(77, 768),
    ),
}  # fmt: skip
"""By name; "tiny" has the widths of the packaged model, "smallest" is for tests."""


@dataclass(frozen=True)
class Batch:
    """What a network is given."""

    noisy: Tensor  # [B, T, C, h, w]
    timesteps: Tensor  # [B]
    prompts: Tensor  # [B, L, E]
    known: Tensor  # [B, T, C + 1, h, w], what Emu Video is told of the frames
    stride: Tensor  # [B], what ConsistI2V is told

    @staticmethod
    def random(size: Size, side: int, *, batch: int = 1) -> Batch:
        """Latents of `side` x `side`."""
        shape = (batch, FRAMES, CHANNELS, side, side)
        return Batch(
            noisy=torch.randn(shape),
            timesteps=torch.full((batch,), 500),
            prompts=torch.randn(batch, *size.prompt),
            known=torch.randn(batch, FRAMES, CHANNELS + 1, side, side),
            stride=torch.ones(batch),
        )


@dataclass(frozen=True)
class Network:
    """A contender."""

    module: nn.Module
    predict: Callable[[Batch], Tensor]
    """[B, T, C, h, w], or [B, C, T, h, w] as diffusers has it."""
    trained: list[nn.Parameter]

    def loss(self, batch: Batch) -> Tensor:
        """The mean square of the prediction: any loss of it costs the same."""
        prediction = self.predict(batch)
        return F.mse_loss(prediction.float(), torch.zeros_like(prediction, dtype=torch.float32))

    def checkpoint(self) -> bool:
        """Turn gradient checkpointing on; False where the network has none."""
        if not getattr(self.module, "_supports_gradient_checkpointing", True):
            return False
        self.module.enable_gradient_checkpointing()  # type: ignore[operator]
        return True


def image_unet(size: Size, **more: Any) -> Any:
    """UNet2DConditionModel, text-to-image."""
    return UNet2DConditionModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=size.layers,
        attention_head_dim=size.heads,
        **_levels(size, "2D"),
        **more,
    )


def frame_by_frame(size: Size) -> Network:
    """The image UNet, which sees the frames as a batch of images."""
    unet = image_unet(size)

    def predict(batch: Batch) -> Tensor:
        images = batch.noisy.flatten(0, 1)
        output: Tensor = unet(
            images,
            batch.timesteps.repeat_interleave(FRAMES),
            batch.prompts.repeat_interleave(FRAMES, dim=0),
            return_dict=False,
        )[0]
        return output.view_as(batch.noisy)

    return _trained(unet, predict)


def consisti2v(size: Size) -> Network:
    """Ours, every parameter trained, as published."""
    unet = image_unet(size, class_embed_type="timestep")  # embeds the stride
    temporal = ours_consisti2v.temporal_layers(unet, "all")
    network = ours_consisti2v.ConsistI2VNetwork(unet, temporal, SCHEDULE)
    # the first frame is among the 16; forward would noise it too, which costs nothing beside the UNet
    return _trained(
        network, lambda batch: network.predict(batch.noisy, batch.timesteps, batch.prompts, label=batch.stride)
    )


def emu_video(size: Size, *, freeze: bool = True) -> Network:
    """Ours; as published the image UNet's own parameters are frozen."""
    unet = image_unet(size)
    network = ours_emu_video.EmuVideoNetwork(unet, ours_emu_video.temporal_layers(unet))
    unet.requires_grad_(not freeze)
    return _trained(network, lambda batch: network(batch.noisy, batch.timesteps, batch.prompts, batch.known))


def motion_model(size: Size, *, freeze: bool = False) -> Network:
    """diffusers' UNetMotionModel; AnimateDiff trains its motion modules alone."""
    unet = UNetMotionModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=size.layers,
        num_attention_heads=size.heads,
        **_levels(size, "Motion"),
    )
    if freeze:
        unet.freeze_unet2d_params()

    def predict(batch: Batch) -> Tensor:
        prompts = batch.prompts.repeat_interleave(FRAMES, dim=0)  # as its pipeline does
        output: Tensor = unet(batch.noisy.transpose(1, 2), batch.timesteps, prompts, return_dict=False)[0]
        return output

    return _trained(unet, predict)


def unet_3d(size: Size) -> Network:
    """diffusers' UNet3DConditionModel."""
    unet = UNet3DConditionModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=size.layers,
        attention_head_dim=size.head_width,
        **_levels(size, "3D"),
    )

    def predict(batch: Batch) -> Tensor:
        output: Tensor = unet(batch.noisy.transpose(1, 2), batch.timesteps, batch.prompts, return_dict=False)[0]
        return output

    return _trained(unet, predict)


NETWORKS: dict[str, Callable[[Size], Network]] = {
    "image UNet, frame by frame": frame_by_frame,
    "ours: ConsistI2V": consisti2v,
    "ours: Emu Video": emu_video,
    "ours: Emu Video, all trained": lambda size: emu_video(size, freeze=False),
    "UNetMotionModel": motion_model,
    "UNetMotionModel, motion alone": lambda size: motion_model(size, freeze=True),
    "UNet3DConditionModel": unet_3d,
}
TRAINING_ONLY = ("ours: Emu Video, all trained", "UNetMotionModel, motion alone")
"""These sample as the one before them does."""


def _levels(size: Size, kind: str) -> dict[str, Any]:
    def blocks(direction: str, attends: Sequence[bool]) -> tuple[str, ...]:
        return tuple(f"CrossAttn{direction}Block{kind}" if here else f"{direction}Block{kind}" for here in attends)

    return {
        "block_out_channels": size.widths,
        "down_block_types": blocks("Down", size.attends),
        "up_block_types": blocks("Up", size.attends[::-1]),
        "norm_num_groups": size.groups,
        "cross_attention_dim": size.prompt[1],
    }


def _trained(module: nn.Module, predict: Callable[[Batch], Tensor]) -> Network:
    return Network(module.train(), predict, [part for part in module.parameters() if part.requires_grad])
