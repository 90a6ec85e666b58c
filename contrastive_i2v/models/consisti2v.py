"""ConsistI2V: an image UNet with temporal layers sees a window of frames, the first of them clean.

Ren et al., "ConsistI2V: Enhancing Visual Consistency for Image-to-Video Generation" (arXiv 2402.04324). The given frame
is the window's first latent, without noise; every frame attends to it in space, and to a window of it in time. The
noise of the frames is partly shared, and in sampling its low frequencies are those of the first frame (FrameInit).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.diffusion.frame_init import Filter, frame_init, low_pass_filter
from contrastive_i2v.errors import InputError, check_fields, one_line
from contrastive_i2v.models.history import drop_history, noise_history
from contrastive_i2v.models.loading import read_object
from contrastive_i2v.models.stable_diffusion import (
    Parts,
    VideoStableDiffusion,
    embed_number,
    keep_noisy_inputs,
    load_parts,
    load_scheduler,
    load_temporal,
)
from contrastive_i2v.models.temporal import (
    FirstFrameAttention,
    Kind,
    Rope,
    TemporalLayers,
    VideoUNet,
    check_heads,
    spatial_layers,
)
from contrastive_i2v.randomness import draw
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, ImageEmbeds, SystemConfig, Text, Window


@dataclass(frozen=True, kw_only=True)
class ConsistI2VConfig(SystemConfig):
    """A window of frames after a clean first one. None = as the model has it, or the published value."""

    kind: Literal["consisti2v"] = "consisti2v"
    frames: int | None = None
    """Frames of a window, the given one included; published: 16. Nothing in the weights depends on it."""
    past_frames: int | None = None
    """Given frames of a window, its history; published: 1. More need frame_timesteps: those before a video's first are
    noise then. Nothing in the weights depends on it."""
    frame_timesteps: bool | None = None
    """Whether every frame of a window, given or generated, has a timestep of its own (Diffusion Forcing), which history
    guidance needs; published: no, the given frame has that of the others."""
    max_stride: int | None = None
    """The network is told the stride, 1 to this: the frame rate of training over that of the window; published: 5."""
    rope: Rope | None = None
    """Which channels turn with time: all (of every head), or reference (as the published weights have it)."""
    start_alpha: float | None = None
    """The image model's share that temporal layers start with; published: 1, where their weights have no gradient until
    the shares move."""
    noise_alpha: float | None = None
    """a: the frames of a window share noise of variance a^2 / (1 + a^2); published: 1."""
    frame_init: bool | None = None
    """Whether sampling starts from noise whose low frequencies are the first frame's; published: yes."""
    filter: Filter | None = None
    """Which frequencies are low: gaussian (published), ideal or butterworth."""
    cutoff: float | None = None
    """D0 of the filter in space, 1 = the highest frequency; published: 0.25."""
    cutoff_time: float | None = None
    """D0 of the filter in time; published: 0.25."""
    filter_order: int | None = None
    """Of the butterworth filter; 4 is usual."""
    frame_init_timestep: int | None = None
    """The timestep that the first frame is noised to for FrameInit; published: 850 of 1000."""

    def __post_init__(self) -> None:
        least = {"frames": 2, "noise_alpha": 0, "frame_init_timestep": 0}
        least |= dict.fromkeys(("past_frames", "max_stride", "filter_order"), 1)
        check_fields(self, least, positive=("cutoff", "cutoff_time"))
        if self.start_alpha is not None and not 0 <= self.start_alpha <= 1:
            raise InputError(f"start_alpha: expected 0 to 1, got {self.start_alpha}")

    def over(self, saved: ConsistI2VConfig) -> ConsistI2VConfig:
        """These options, and the saved ones where they are None. Raises InputError for another rope than the saved."""
        merged = super().over(saved)
        if merged.rope != saved.rope:
            raise InputError(f"rope: the model was trained with {saved.rope!r}; expected that, got {merged.rope!r}")
        return merged


PUBLISHED = ConsistI2VConfig(
    frames=16,
    past_frames=1,
    frame_timesteps=False,
    max_stride=5,
    rope="all",
    start_alpha=1.0,
    noise_alpha=1.0,
    frame_init=True,
    filter="gaussian",
    cutoff=0.25,
    cutoff_time=0.25,
    filter_order=4,
    frame_init_timestep=850,
)


class ConsistI2VNetwork(VideoUNet):
    """The given latents, clean or noised, and the noisy ones after them, as one clip."""

    def __init__(self, unet: Any, temporal: TemporalLayers, schedule: NoiseSchedule) -> None:
        super().__init__(unet, temporal)
        self.schedule = schedule
        for name in spatial_layers(unet, "Attention"):
            if name.endswith("attn1"):
                unet.get_submodule(name).set_processor(FirstFrameAttention(temporal.clip))

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        history: Tensor,
        history_noise: Tensor,
        stride: Tensor,
        prompt_embeds: Tensor,
        without_image: Tensor | None = None,
        history_timesteps: Tensor | None = None,
    ) -> Tensor:
        """The prediction for the noisy frames.

        Args:
            noisy: [B, G, C, h, w].
            timesteps: [B], the given frames' too; with history_timesteps [B] or [B, G], the noisy frames' alone.
            history: [B, n, C, h, w], the given frames, normalised.
            history_noise: [B, n, C, h, w].
            stride: [B], of the frames, 1 or more.
            prompt_embeds: [B, L, E].
            without_image: bool [B]; where it is True the given frames are noised at t, elsewhere clean.
            history_timesteps: [B, n], in place of without_image: the given frames are noised to these, and are told so.

        Returns:
            [B, G, C, h, w]
        """
        at = timesteps
        if history_timesteps is not None:
            at, own = history_timesteps, timesteps.reshape(len(noisy), -1).expand(-1, noisy.shape[1])
            timesteps = torch.cat([at, own], dim=1)  # [B, T]
        at = at if self.schedule.prediction_type == "flow" else at.long()
        shown = self.schedule.add_noise(history, history_noise, at)
        if without_image is not None:
            shown = torch.where(without_image.view(-1, 1, 1, 1, 1), shown, history)
        clip = torch.cat([shown.to(noisy.dtype), noisy], dim=1)
        return self.predict(clip, timesteps, prompt_embeds, label=stride)[:, history.shape[1] :]


class ConsistI2V(VideoStableDiffusion):
    """Windows of frames on Stable Diffusion's parts; a window's last frame is the next one's first.

    Args:
        parts: the UNet embeds a number, the stride.
        temporal: the layers of `temporal_layers`.
        scheduler: a diffusers scheduler; its config holds the noise schedule and the prediction type.
        config: the options, none of them None.
    """

    Config = ConsistI2VConfig
    any_length = True
    config: ConsistI2VConfig
    network: ConsistI2VNetwork

    def __init__(self, parts: Parts, temporal: TemporalLayers, scheduler: Any, config: ConsistI2VConfig) -> None:
        schedule = NoiseSchedule.from_config(scheduler.config)
        network = ConsistI2VNetwork(parts.unet, temporal, schedule)
        sampler = Sampler(steps=50, guidance_scale=7.5, image_guidance_scale=1.0)
        super().__init__(parts, network, scheduler, sampler)
        self.config, self.max_stride = config, config.max_stride
        past, self.frame_timesteps = config.past_frames or 1, bool(config.frame_timesteps)
        if past > 1 and not self.frame_timesteps:
            raise InputError(
                f"past_frames={past}: those before a video's first can't be told from true ones; expected 1, or "
                "frame_timesteps=True"
            )
        self.window = Window(cast(int, config.frames), tuple(range(past)))
        most = schedule.num_train_timesteps - 1
        if cast(int, config.frame_init_timestep) > most:
            raise InputError(
                f"frame_init_timestep: expected 0 to {most}, the timesteps of the model's scheduler, got "
                f"{config.frame_init_timestep}"
            )

    @classmethod
    def opens(cls, folder: Path) -> bool:
        """The published folder."""
        return _published_config(folder) is not None

    @classmethod
    def load(cls, source: str, config: SystemConfig, saved: SystemConfig | None) -> ConsistI2V:
        """Any Stable Diffusion 1.x or 2.x folder (an InstructPix2Pix one loses its image channels), what `save` wrote,
        or the published folder.

        A base model gets new temporal layers, and a DDIM scheduler over its own noise schedule.
        """
        wanted = cast(ConsistI2VConfig, config)
        if isinstance(saved, ConsistI2VConfig):
            temporal, parts = load_temporal(source), load_parts(source)
            return cls(parts, temporal, load_scheduler(source, is_base=False), wanted.over(saved))
        if (layout := _published_config(Path(source))) is not None:
            merged = wanted.over(replace(PUBLISHED, rope="reference"))
            unet, temporal = _load_published(Path(source), layout)
            return cls(load_parts(source, unet=unet), temporal, load_scheduler(source, is_base=True), merged)
        parts = load_parts(source)
        merged = wanted.over(replace(PUBLISHED, rope=wanted.rope or PUBLISHED.rope))
        keep_noisy_inputs(source, parts.unet, int(parts.vae.config.latent_channels))
        embed_number(parts.unet)
        temporal = temporal_layers(parts.unet, cast(Rope, merged.rope), alpha=cast(float, merged.start_alpha))
        system = cls(parts, temporal, load_scheduler(source, is_base=True), merged)
        system.added = ("temporal", "unet.class_embedding")
        return system

    def constrain(self) -> None:
        """Alphas lie between 0 and 1. (A clamp in the forward pass would leave an alpha above 1 without gradient.)"""
        for alpha in self.temporal.alphas().values():
            alpha.data.clamp_(0, 1)

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
        """history and history_noise [B, n, C, h, w], stride [B], prompt_embeds [B, L, E], and without_image [B]; in its
        place with frame_timesteps history_timesteps [B, n], the cleanest, or of a frame that isn't there the noisiest.
        """
        if noise is None:
            raise InputError("noise: expected [B, n, C, h, w], the given frames', as `noise` draws it; got None")
        condition = {
            "history": self.codec.normalize(given),
            "history_noise": noise.to(given.dtype),
            "stride": self.strides(given, fps),
            **text,
        }
        if not self.frame_timesteps:
            return condition | {"without_image": torch.zeros(len(given), dtype=torch.bool, device=given.device)}
        missing = torch.zeros(given.shape[:2], device=given.device) if present is None else (~present).float()
        return condition | {"history_timesteps": self.network.schedule.timesteps_at(missing)}

    def drop(self, condition: Condition, *, image: Tensor, text: Tensor, negative: Text | None = None) -> Condition:
        """The given latents noised at t, or with frame_timesteps to the noisiest timestep, in place of the image; the
        embedding of "" in place of the prompt."""
        without = drop_history(condition, image, self.network.schedule)
        return condition | without | self.drop_text(condition, text, negative)

    def noise_history(self, condition: Condition, timesteps: Tensor | float) -> Condition:
        return noise_history(condition, timesteps)

    def noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        given: Tensor,
        sampling: bool,
        layout: Tensor | None = None,
    ) -> Tensor:
        """(a e_shared + e_frame) / sqrt(1 + a^2), so of unit variance and covariance a^2 / (1 + a^2) between frames;
        and in sampling, FrameInit over it, from the last given frame. `[B, n + G, C, h, w]`, the given frames' first;
        with frame_timesteps these keep noise without FrameInit, which would show what a history of noise is to hide.

        Source: Ge et al., "Preserve Your Own Correlation" (arXiv 2305.10474), section 3.1, the mixed noise model.
        """
        config, (batch, generated, *latent), count = self.config, shape, given.shape[1]
        a = cast(float, config.noise_alpha)
        shared = draw((batch, 1, *latent), generator)
        noise = (a * shared + draw((batch, count + generated, *latent), generator)) / math.sqrt(1 + a * a)
        if not (sampling and config.frame_init):
            if layout is not None:
                raise InputError("layout: the noise follows one by FrameInit, which is off; expected frame_init=True")
            return noise
        if layout is None:
            layout = self.codec.normalize(given[:, -1:]).expand(noise.shape)
        elif layout.shape != noise.shape:
            raise InputError(f"layout has shape {list(layout.shape)}; expected {list(noise.shape)}, a latent a frame")
        timesteps = torch.full((batch,), cast(int, config.frame_init_timestep))
        low = low_pass_filter(
            (count + generated, *latent[1:]),
            cast(Filter, config.filter),
            cutoff=cast(float, config.cutoff),
            cutoff_time=cast(float, config.cutoff_time),
            order=cast(int, config.filter_order),
        )
        started = frame_init(self.schedule.add_noise(layout.float().cpu(), noise, timesteps), noise, low)
        return torch.cat([noise[:, :count], started[:, count:]], dim=1) if self.frame_timesteps else started


def temporal_layers(unet: Any, rope: Rope, *, alpha: float = 1.0) -> TemporalLayers:
    """New temporal layers for a UNet: one after every ResNet, one after every spatial transformer but the middle's.

    Raises InputError where the UNet's channels don't split into heads.
    """
    resnets = {name: module.conv2.out_channels for name, module in spatial_layers(unet, "ResnetBlock2D").items()}
    transformers = {
        name: module.proj_out.weight.shape[0]
        for name, module in spatial_layers(unet, "Transformer2DModel").items()
        if not name.startswith("mid_block")
    }
    check_heads(transformers)
    layers: dict[str, tuple[Kind, int]] = {name: ("resnet", width) for name, width in resnets.items()}
    temporal: TemporalLayers = TemporalLayers(
        layers | {name: ("transformer", width) for name, width in transformers.items()},
        text_width=int(unet.config.cross_attention_dim),
        groups=int(unet.config.norm_num_groups),
        rope=rope,
        alpha=alpha,
    )
    return temporal


def _published_config(folder: Path) -> dict[str, Any] | None:
    """The UNet's config of a folder in the authors' own layout; None for another folder."""
    file = folder / "unet" / "config.json"
    config = read_object(file) if file.is_file() else {}
    return config if config.get("_class_name") == PUBLISHED_CLASS else None


def _load_published(folder: Path, config: Mapping[str, Any]) -> tuple[Any, TemporalLayers]:
    """The UNet and temporal layers of the authors' weights. Raises InputError for missing keys."""
    known = set(inspect.signature(diffusers.UNet2DConditionModel.__init__).parameters)
    spatial = {name: value for name, value in config.items() if name in known} | {"class_embed_type": "timestep"}
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(spatial)
        temporal = temporal_layers(unet, "reference")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    try:
        weights = from_published(load_file(file))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file}: can't be read ({one_line(error)}); expected the published weights as safetensors: open them in "
            "their own code and save them with safetensors.torch.save_file"
        ) from error
    for part, module in (("unet", unet), ("temporal", temporal)):
        mine = {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
        expected = module.state_dict()
        if wrong := _misfit(expected, mine):
            raise InputError(f"{file}: the weights of {part} {wrong}; expected ConsistI2V's as published")
        module.load_state_dict({key: value.float() for key, value in mine.items()}, assign=True)
    return unet, temporal


def _misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """How weights differ from those that a module has: a name that is missing or too many, or a shape."""
    if missing := [key for key in expected if key not in found]:
        return f"lack {len(missing)}, such as {missing[0]}"
    if foreign := sorted(set(found) - set(expected)):
        return f"have {foreign[0]}, which is foreign"
    for key, value in expected.items():
        if found[key].shape != value.shape:
            return f"have {key} of shape {list(found[key].shape)}, not {list(value.shape)}"
    return None


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names as ours: `unet.` and `temporal.` before the keys of the two modules.

    conv3ds.j follows resnets.j, tempo_attns.j follows attentions.j, and the stride's embedding is the UNet's class
    embedding. time_emb_proj and rotary_bias are in the weights, and the authors' forward pass uses neither.
    """
    renamed = {}
    for key, value in weights.items():
        if "time_emb_proj" in key and "conv3ds" in key or "rotary_bias" in key:
            continue
        layer = PUBLISHED_LAYER.fullmatch(key)
        if layer:
            block, kind, number, rest = layer.groups()
            follows = {"conv3ds": "resnets", "tempo_attns": "attentions"}[kind]
            renamed[f"temporal.layers.{block.replace('.', '-')}-{follows}-{number}.{rest}"] = value
        else:
            renamed["unet." + key.replace("frame_stride_embedding", "class_embedding")] = value
    return renamed


PUBLISHED_CLASS = "VideoLDMUNet3DConditionModel"
PUBLISHED_LAYER = re.compile(r"((?:down|up)_blocks\.\d+|mid_block)\.(conv3ds|tempo_attns)\.(\d+)\.(.*)")
