"""InstructPix2Pix on Stable Diffusion 1.x parts: given frames enter through extra input channels, frame by frame.

Brooks, Holynski, Efros, "InstructPix2Pix: Learning to Follow Image Editing Instructions" (arXiv 2211.09800),
section 3.2: the UNet of a text-to-image model gets the conditioning image's latents beside the noisy ones.
Its first convolution grows to take them; the new weights start at zero, so training starts at the base model.

Four options go on from there. Several past frames and an anchor, the video's first frame, are more input channels of
the same kind, each older frame with a channel that says whether it is there. The level of the noise on the given frames
is embedded and added to the timestep's embedding, its last layer starting at zero, so that training can add noise and
sampling can say that there is none (Valevski et al., "Diffusion Models Are Real-Time Game Engines", arXiv 2408.14837).
Or the stride is embedded so, and the frame ahead is one more input with such a channel: then a rollout may begin with
keyframes and go on halfway between them (Harvey et al., "Flexible Diffusion Modeling of Long Videos", arXiv
2205.11495).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.models.autoencoder import like
from contrastive_i2v.models.stable_diffusion import (
    Parts,
    StableDiffusion,
    embed_number,
    grow_inputs,
    is_stable_diffusion,
    load_parts,
    load_scheduler,
)
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, ImageEmbeds, SystemConfig, Text, Window, dropped

MOST_PAST_FRAMES = 16
LEVEL_SCALE = 1000.0
"""A noise level of 1 is embedded as timestep 1000 is."""


@dataclass(frozen=True, kw_only=True)
class InstructPix2PixConfig(SystemConfig):
    """What the next frame is generated from. None = as the model has it; a plain model has one past frame alone."""

    kind: Literal["instruct-pix2pix"] = "instruct-pix2pix"
    past_frames: int | None = None
    """Past frames that condition the next one, 1 or more. At a video's start the missing ones repeat its first frame
    and are marked."""
    anchor: bool | None = None
    """Whether the video's first frame conditions every other one, beside the past frames."""
    noise_level: bool | None = None
    """Whether the network is told the level of the noise on its given frames (train with --condition-noise)."""
    max_stride: int | None = None
    """Above 1 the network is told the stride of a window, 1 to this, and may be given the frame ahead (train with
    --data.frames.offsets); sampling then takes --keyframe-stride."""

    def __post_init__(self) -> None:
        check_fields(self, {"max_stride": 1})
        if self.past_frames is not None and not 1 <= self.past_frames <= MOST_PAST_FRAMES:
            raise InputError(f"past_frames: expected 1 to {MOST_PAST_FRAMES}, got {self.past_frames}")
        if self.noise_level and self.ahead:
            raise InputError(
                f"noise_level, max_stride={self.max_stride}: the network embeds one number; expected one of them"
            )

    @property
    def ahead(self) -> bool:
        """Whether the network is told the stride and takes a frame ahead."""
        return (self.max_stride or 1) > 1

    def over(self, saved: InstructPix2PixConfig) -> InstructPix2PixConfig:
        """These options, and the saved ones where they are None. Raises InputError where the saved ones have more."""
        merged = super().over(saved)
        for name in ("past_frames", "anchor", "noise_level", "max_stride"):
            had, asked = getattr(saved, name), getattr(merged, name)
            if asked < had:
                raise InputError(f"{name}: the model was trained with {had}; expected that or more, got {asked}")
        return merged


PLAIN = InstructPix2PixConfig(past_frames=1, anchor=False, noise_level=False, max_stride=1)


class InstructPix2PixNetwork(nn.Module):
    """UNet2DConditionModel that sees noisy and given latents side by side."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        image_latents: Tensor,
        prompt_embeds: Tensor,
        noise_level: Tensor | None = None,
        stride: Tensor | None = None,
    ) -> Tensor:
        """unet(cat([noisy, image_latents], channels), timesteps, prompt_embeds).

        Args:
            noisy: [B, 1, C, h, w] (after the scheduler's `scale_model_input`).
            timesteps: [B].
            image_latents: [B, channels, h, w], from `condition`: latents *not* scaled, as InstructPix2Pix was trained.
            prompt_embeds: [B, L, E].
            noise_level, stride: [B]; the one that the network embeds, if it does.

        Returns:
            [B, 1, C, h, w]
        """
        inputs = torch.cat([noisy[:, 0], image_latents.to(noisy.dtype)], dim=1)  # [B, C + channels, h, w]
        number = stride if noise_level is None else LEVEL_SCALE * noise_level
        prediction: Tensor = self.unet(
            like(self.unet, inputs),
            timesteps,
            encoder_hidden_states=like(self.unet, prompt_embeds),
            class_labels=number,
            return_dict=False,
        )[0]
        return prediction[:, None]

    def enable_gradient_checkpointing(self) -> None:
        """Less memory for more time."""
        self.unet.enable_gradient_checkpointing()


class InstructPix2Pix(StableDiffusion):
    """A latent image-to-image diffusion model; a video is rolled out frame by frame.

    Args:
        parts: the UNet with the input channels that `config` asks for.
        scheduler: a diffusers scheduler; its config holds the noise schedule and the prediction type.
        config: the options, none of them None.
    """

    Config = InstructPix2PixConfig
    config: InstructPix2PixConfig
    network: InstructPix2PixNetwork

    def __init__(
        self, parts: Parts, scheduler: Any, config: InstructPix2PixConfig = PLAIN, sampler: Sampler | None = None
    ) -> None:
        super().__init__(parts, InstructPix2PixNetwork(parts.unet), scheduler, sampler)
        self.config = config
        past = config.past_frames or 1
        self.window = Window(past + 1, tuple(range(past)), anchor=bool(config.anchor), ahead=config.ahead)
        self.max_stride = config.max_stride if config.ahead else None

    @classmethod
    def opens(cls, folder: Path) -> bool:
        """A Stable Diffusion folder, text-to-image or InstructPix2Pix: its parts, and a plain 2-D UNet."""
        return is_stable_diffusion(folder)

    @classmethod
    def load(cls, source: str, config: SystemConfig, saved: SystemConfig | None) -> InstructPix2Pix:
        """Stable Diffusion 1.x (`conv_in` grows from C to 2C channels), InstructPix2Pix, or what `save` wrote.

        A base model gets a DDIM scheduler made from its scheduler's config (the same noise schedule); a
        converted model, or one with a flow-matching scheduler, keeps the scheduler its folder names.
        """
        parts = load_parts(source)
        unet, channels = parts.unet, int(parts.vae.config.latent_channels)
        _check_unet(source, unet, channels, cast(InstructPix2PixConfig | None, saved))
        is_base = unet.config.in_channels == channels
        scheduler = load_scheduler(source, is_base=is_base)
        has = cast(InstructPix2PixConfig, saved or PLAIN).over(PLAIN)  # an older file lacks newer options
        config = cast(InstructPix2PixConfig, config).over(has)
        before, after = {"noisy": channels} if is_base else _inputs(has, channels), _inputs(config, channels)
        grow_inputs(unet, "conv_in", before, after)
        added = ["unet.conv_in"] * (before != after)
        if _embeds(config) and not _embeds(has):
            embed_number(unet)
            added.append("unet.class_embedding")
        system = cls(parts, scheduler, config)
        system.added = tuple(added)
        return system

    def save_weights(self, folder: Path) -> None:
        """A diffusers folder (safetensors): with plain options StableDiffusionInstructPix2PixPipeline opens it."""
        pipeline = diffusers.StableDiffusionInstructPix2PixPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(str(folder), safe_serialization=True)

    def condition(
        self,
        given: Tensor,
        text: Text,
        *,
        present: Tensor | None = None,
        fps: Tensor | None = None,
        noise_level: Tensor | None = None,
        noise: Tensor | None = None,
        image: ImageEmbeds | None = None,
    ) -> Condition:
        """image_latents [B, channels, h, w]: the last frame before the generated one, then each older one and its mask,
        the anchor, and the frame ahead, zeros where it is absent, and its mask; prompt_embeds [B, L, E]; and
        noise_level or stride [B] where the network embeds it."""
        frames = list(given.unbind(dim=1))
        masks = list(
            (torch.ones_like(given[:, :, 0, 0, 0]) if present is None else present.to(given.dtype)).unbind(dim=1)
        )

        def with_mask(frame: Tensor, there: Tensor) -> list[Tensor]:
            return [frame, there.view(-1, 1, 1, 1).expand_as(frame[:, :1])]

        anchor = [frames.pop(0)] if self.window.anchor else []
        ahead = []
        if self.window.ahead:
            ahead = with_mask(frames.pop() * masks[-1].view(-1, 1, 1, 1), masks.pop())
        channels = [frames.pop()]
        for age, frame in enumerate(reversed(frames), start=2):
            channels += with_mask(frame, masks[-age])
        condition = {"image_latents": torch.cat([*channels, *anchor, *ahead], dim=1), **text}
        if self.config.ahead:
            condition["stride"] = self.strides(given, fps)
        if self.config.noise_level:
            condition["noise_level"] = given.new_zeros(len(given)) if noise_level is None else noise_level
        return condition

    def drop(self, condition: Condition, *, image: Tensor, text: Tensor, negative: Text | None = None) -> Condition:
        """Zeros in place of the image, and of its noise level; the embedding of "" in place of the prompt."""
        changed = {
            name: dropped(condition[name], image) for name in ("image_latents", "noise_level") if name in condition
        }
        return condition | changed | self.drop_text(condition, text, negative)


def _inputs(config: InstructPix2PixConfig, channels: int) -> dict[str, int]:
    """Channels of the first convolution's inputs, in order."""
    older = [f"past {age}" for age in range(2, (config.past_frames or 1) + 1)]
    frames = {name: width for frame in older for name, width in ((frame, channels), (f"{frame}'s mask", 1))}
    ahead = {"ahead": channels, "ahead's mask": 1} if config.ahead else {}
    return {"noisy": channels, "past 1": channels} | frames | ({"anchor": channels} if config.anchor else {}) | ahead


def _embeds(config: InstructPix2PixConfig) -> bool:
    """Whether the network embeds a number."""
    return bool(config.noise_level) or config.ahead


def _check_unet(name: str, unet: Any, channels: int, saved: InstructPix2PixConfig | None) -> None:
    config, full = unet.config, sum(_inputs(saved or PLAIN, channels).values())
    if config.in_channels not in ((full,) if saved else (channels, full)) or config.out_channels != channels:
        raise InputError(
            f"the UNet of model {name!r} has in_channels={config.in_channels}, "
            f"out_channels={config.out_channels}; expected in_channels {channels} (Stable Diffusion 1.x) or "
            f"{full} (InstructPix2Pix) and out_channels {channels}: use a text-to-image or "
            "InstructPix2Pix model, not an inpainting or depth one"
        )
    if bool(saved and _embeds(saved)) != (config.class_embed_type == "timestep"):
        raise InputError(
            f"the UNet of model {name!r} has class_embed_type={config.class_embed_type!r}; expected "
            f"{'timestep' if saved and _embeds(saved) else None!r}: its system.json belongs to other weights"
        )
