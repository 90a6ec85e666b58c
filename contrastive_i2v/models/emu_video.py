"""Emu Video: text makes an image, then image and text make a video, by one model.

Girdhar et al., "Emu Video: Factorizing Text-to-Video Generation by Explicit Image Conditioning" (arXiv 2311.10709).
Temporal layers that start as the identity are added to a text-to-image UNet, whose own layers stay frozen: without
the temporal layers it is the image model still. The image is told by more input channels, its latents where a frame is
given and zeros elsewhere, and a mask; the network generates every frame of a window anew. The same model with
keyframes given inside the window, and its temporal layers trained on, fills in frames between them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import torch
from torch import Tensor, nn

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.models.stable_diffusion import (
    Parts,
    VideoStableDiffusion,
    keep_noisy_inputs,
    load_parts,
    load_scheduler,
    load_temporal,
)
from contrastive_i2v.models.temporal import Kind, TemporalLayers, VideoUNet, check_heads, spatial_layers
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, ImageEmbeds, SystemConfig, Text, Window, dropped

Task = Literal["image", "video", "interpolation"]


@dataclass(frozen=True, kw_only=True)
class EmuVideoConfig(SystemConfig):
    """Which of the model's tasks is trained and sampled. None = as the model has it, or the published value."""

    kind: Literal["emu-video"] = "emu-video"
    task: Task | None = None
    """image: from text, by the spatial layers alone. video: from an image and text. interpolation: between keyframes.
    A base model starts with image; video starts from an image model, interpolation from a video model."""
    frames: int | None = None
    """Frames of a video window, the given one included; published: 8 or 16."""
    keyframes: int | None = None
    """Given frames of an interpolation window; published: 8."""
    gap: int | None = None
    """Frames from one keyframe to the next, and before the first and after the last; published: 4, so 8 become 37."""
    keyframe_noise: float | None = None
    """Standard deviation of noise that interpolation adds to its keyframes in sampling, in units of latents, so that it
    forgives what is wrong with them; train with --condition-noise. Published: that of timestep 100."""
    zero_terminal_snr: bool | None = None
    """v prediction with no signal at the last timestep, trailing timesteps; published: yes. No = as the base model."""
    freeze_spatial: bool | None = None
    """Whether a video model trains its temporal layers alone; published: yes."""
    factorised: bool | None = None
    """Whether the video model is told the image; published: yes. No = text to video directly, for comparison."""

    def __post_init__(self) -> None:
        check_fields(self, {"frames": 2, "keyframes": 2, "gap": 2, "keyframe_noise": 0})


PUBLISHED = EmuVideoConfig(
    task="image",
    frames=8,
    keyframes=8,
    gap=4,
    keyframe_noise=0.34,  # sqrt((1 - abar) / abar) of Stable Diffusion's schedule at timestep 100
    zero_terminal_snr=True,
    freeze_spatial=True,
    factorised=True,
)
SAMPLER = Sampler(steps=50, guidance_scale=7.5, image_guidance_scale=2.0)


class EmuVideoNetwork(VideoUNet):
    """All frames of a window, noisy, beside what is known of them."""

    def forward(self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor, known: Tensor | None = None) -> Tensor:
        """The prediction for every frame.

        Args:
            noisy: [B, T, C, h, w]; timesteps: [B].
            prompt_embeds: [B, L, E].
            known: [B, T, C + 1, h, w], the given latents, zeros elsewhere, and the mask; None for images.

        Returns:
            [B, T, C, h, w]
        """
        return self.predict(noisy, timesteps, prompt_embeds, condition=known, as_images=known is None)


class EmuVideo(VideoStableDiffusion):
    """An image model, a video model or an interpolation model on Stable Diffusion's parts.

    Args:
        parts: the UNet takes noisy latents alone.
        temporal: the layers of `temporal_layers`.
        scheduler: a diffusers scheduler; its config holds the noise schedule and the prediction type.
        config: the options, none of them None.
    """

    Config = EmuVideoConfig
    config: EmuVideoConfig
    network: EmuVideoNetwork

    def __init__(self, parts: Parts, temporal: TemporalLayers, scheduler: Any, config: EmuVideoConfig) -> None:
        super().__init__(parts, EmuVideoNetwork(parts.unet, temporal), scheduler, SAMPLER)
        self._take_task(config)

    def _take_task(self, config: EmuVideoConfig) -> None:
        frames, count, gap = cast(tuple[int, int, int], (config.frames, config.keyframes, config.gap))
        self.config = config
        self.window = {
            "image": Window(1, given=()),
            "video": Window(frames, regenerates=True),
            "interpolation": Window(
                gap * (count + 1) + 1, tuple(gap * (place + 1) for place in range(count)), regenerates=True
            ),
        }[cast(Task, config.task)]

    @classmethod
    def opens(cls, folder: Path) -> bool:
        """None: a folder that training wrote says what it is."""
        return False

    @classmethod
    def load(cls, source: str, config: SystemConfig, saved: SystemConfig | None) -> EmuVideo:
        """What `save` wrote, or any Stable Diffusion 1.x or 2.x folder (an InstructPix2Pix one loses its image
        channels): as an image model, or, where its noise has no signal at the end, as a video model at once."""
        wanted = cast(EmuVideoConfig, config)
        if isinstance(saved, EmuVideoConfig):
            temporal, parts = load_temporal(source), load_parts(source)
            merged = wanted.over(saved)
            _check_start(source, merged, saved)
            system = cls(parts, temporal, load_scheduler(source, is_base=False), merged)
            system.added = ("temporal",) if saved.task == "image" else ()  # untrained there
            return system
        parts = load_parts(source)
        merged = wanted.over(PUBLISHED)
        is_base = parts.unet.config.in_channels == int(parts.vae.config.latent_channels)
        keep_noisy_inputs(source, parts.unet, int(parts.vae.config.latent_channels))
        scheduler = load_scheduler(source, is_base=True)
        if merged.zero_terminal_snr and merged.task == "image":
            scheduler = zero_snr_scheduler(scheduler)
        if merged.task != "image" and not is_base:
            raise InputError(
                f"model {source!r} is an InstructPix2Pix model, and no image model without its image channels; "
                "expected a text-to-image one: train it with task=image first (--recipe emu-video/image)"
            )
        if merged.task == "interpolation":
            raise InputError(
                f"model {source!r} is no video model; interpolation starts from one: train it with task=video first"
            )
        _check_noise(source, merged, scheduler)
        system = cls(parts, temporal_layers(parts.unet), scheduler, merged)
        system.added = ("temporal",)
        return system

    def still(self) -> EmuVideo:
        """The image model: the spatial layers alone. The parts are shared."""
        image = copy.copy(self)
        image._take_task(replace(self.config, task="image"))
        image.sampler = replace(self.sampler, image_guidance_scale=1.0, prediction_scale=1.0, prediction_slope=0.0)
        return image

    def trainable(self) -> list[nn.Parameter]:
        """The UNet of an image model; the temporal layers and the image's input channels of a video model, and its UNet
        where that isn't frozen; the temporal layers alone of an interpolation model."""
        if self.config.task == "image":
            return list(self.unet.parameters())
        layers: Iterator[nn.Parameter] = self.temporal.layers.parameters()
        if self.config.task == "interpolation":
            return list(layers)
        assert self.temporal.conv_condition is not None
        spatial = [] if self.config.freeze_spatial else self.unet.parameters()
        return list(chain(layers, self.temporal.conv_condition.parameters(), spatial))

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
        """prompt_embeds [B, L, E]; and, but for images, known [B, T, C + 1, h, w]: the normalised latents at the given
        places, zeros elsewhere, and where they are."""
        if self.config.task == "image":
            return dict(text)
        known = given.new_zeros(len(given), self.window.length, given.shape[2] + 1, *given.shape[3:])
        latents = self.codec.normalize(given)
        if noise is not None:
            latents = latents + cast(float, self.config.keyframe_noise) * noise
        if self.config.factorised:
            for place, latent in zip(self.window.given, latents.unbind(dim=1), strict=True):
                known[:, place, :-1] = latent
                known[:, place, -1] = 1
        return {"known": known, **text}

    def drop(self, condition: Condition, *, image: Tensor, text: Tensor, negative: Text | None = None) -> Condition:
        """Zeros in place of the image and of its mask; the embedding of "" in place of the prompt."""
        changed = self.drop_text(condition, text, negative)
        if "known" in condition:  # not of an image model
            changed["known"] = dropped(condition["known"], image)
        return changed

    def noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        given: Tensor,
        sampling: bool,
        layout: Tensor | None = None,
    ) -> Tensor:
        """Independent; an interpolation model's keyframes get some too in sampling, which comes first."""
        if sampling and self.config.task == "interpolation" and self.config.keyframe_noise:
            shape = (shape[0], given.shape[1] + shape[1], *shape[2:])
        return super().noise(shape, generator, given=given, sampling=sampling, layout=layout)


def temporal_layers(unet: Any) -> TemporalLayers:
    """New temporal layers for a UNet: a convolution after every 3 x 3 one but the last, attention after every spatial
    self-attention; all of them the identity.

    Raises InputError where the UNet's channels don't split into heads.
    """
    convolutions: dict[str, int] = {
        name: int(module.out_channels)
        for name, module in spatial_layers(unet, "Conv2d").items()
        if module.kernel_size == (3, 3) and name != "conv_out"
    }
    attentions = {
        name: int(module.to_q.weight.shape[0])
        for name, module in spatial_layers(unet, "Attention").items()
        if name.endswith("attn1")
    }
    check_heads(attentions)
    layers: dict[str, tuple[Kind, int]] = {name: ("convolution", width) for name, width in convolutions.items()}
    temporal: TemporalLayers = TemporalLayers(
        layers | {name: ("attention", width) for name, width in attentions.items()},
        text_width=int(unet.config.cross_attention_dim),
        inputs=int(unet.config.in_channels) + 1,
        first_channels=int(unet.config.block_out_channels[0]),
    )
    return temporal


def zero_snr_scheduler(scheduler: Any) -> Any:
    """DDIM over the scheduler's noise schedule, without signal at the last timestep, v prediction and trailing
    timesteps: what the model is then trained to.

    Source: Lin et al. (arXiv 2305.08891), sections 3.1 to 3.3.
    """
    return diffusers.DDIMScheduler.from_config(
        scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )


def _check_start(source: str, wanted: EmuVideoConfig, saved: EmuVideoConfig) -> None:
    order = ("image", "video", "interpolation")
    if order.index(cast(Task, wanted.task)) > order.index(cast(Task, saved.task)) + 1:
        raise InputError(
            f"model {source!r} was trained with task={saved.task}, and task={wanted.task} starts from "
            f"{order[order.index(cast(Task, wanted.task)) - 1]}: train that first"
        )
    if wanted.zero_terminal_snr != saved.zero_terminal_snr:
        raise InputError(
            f"zero_terminal_snr: model {source!r} was trained with {saved.zero_terminal_snr}; expected that: another "
            "noise needs another image model"
        )


def _check_noise(source: str, config: EmuVideoConfig, scheduler: Any) -> None:
    """Raises InputError where a model's noise isn't what its config says."""
    if not config.zero_terminal_snr:
        return
    if scheduler.config.prediction_type == "epsilon":
        raise InputError(
            f"model {source!r} predicts epsilon, which says nothing where there is no signal (zero_terminal_snr); "
            "expected v prediction: train an image model to it first (--recipe emu-video/image), or give "
            "zero_terminal_snr=False"
        )
    if float(NoiseSchedule.from_config(scheduler.config).signal(torch.tensor([-1]))) > 0:
        raise InputError(
            f"the noise of model {source!r} keeps signal at the last timestep; expected none (zero_terminal_snr): "
            "train an image model to it first (--recipe emu-video/image), or give zero_terminal_snr=False"
        )
