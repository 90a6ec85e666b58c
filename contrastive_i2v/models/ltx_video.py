"""LTX-Video: a flow-matching transformer over all tokens of a highly compressed video, the given frames clean ones.

HaCohen et al., "LTX-Video: Realtime Video Latent Diffusion" (arXiv 2501.00103). A given frame's tokens have timestep 0,
positions are in seconds and pixels, and timesteps shift with the number of tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor, nn

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError
from contrastive_i2v.models.autoencoder import device_of, like
from contrastive_i2v.models.loading import downloaded
from contrastive_i2v.models.stable_diffusion import load_scheduler
from contrastive_i2v.models.video_transformer import (
    PARTS,
    Parts,
    VideoCodec,
    VideoTransformer,
    VideoTransformerConfig,
    VideoTransformerNetwork,
    check_text_width,
    is_transformer,
    load_parts,
    tiny_tokenizer,
)
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, ImageEmbeds, SystemConfig, Text


@dataclass(frozen=True, kw_only=True)
class LTXVideoConfig(VideoTransformerConfig):
    """Windows of 121 frames after one given frame. None = as the model has it, or the published value."""

    kind: Literal["ltx-video"] = "ltx-video"


PUBLISHED = LTXVideoConfig(frames=121, past_frames=1, frame_timesteps=False, text_length=128)
TRANSFORMER = "LTXVideoTransformer3DModel"


class LTXVideoCodec(VideoCodec):
    """A `Codec` over AutoencoderKLLTXVideo, whose decoder is told timestep 0 where it takes one."""

    def __init__(self, vae: Any) -> None:
        told = vae.config.timestep_conditioning
        super().__init__(
            vae,
            mean=vae.latents_mean,
            std=vae.latents_std / vae.config.scaling_factor,
            downscale=vae.spatial_compression_ratio,
            temporal_downscale=vae.temporal_compression_ratio,
            options=lambda size: {"temb": like(vae, torch.zeros(size))} if told else {},
        )

    def decode(self, latents: Tensor) -> Tensor:
        """As `VideoCodec.decode`; a decoder that adds noise, as that of LTX-Video 0.9.1, adds the same every time."""
        device = device_of(self.vae)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            return super().decode(latents)


class LTXVideoNetwork(VideoTransformerNetwork):
    """LTXVideoTransformer3DModel over clean given frames and noisy ones, a token a latent pixel.

    Args:
        downscale, temporal_downscale: the codec's: positions are in pixels and seconds.
    """

    def __init__(self, transformer: Any, schedule: NoiseSchedule, *, downscale: int, temporal_downscale: int) -> None:
        super().__init__(transformer, schedule)
        self.downscale, self.temporal_downscale = downscale, temporal_downscale

    def predict(self, clip: Tensor, timesteps: Tensor, **told: Tensor) -> Tensor:
        """`told`: prompt_embeds [B, L, E], prompt_mask [B, L] and rate [B], frames a second."""
        _, length, _, height, width = clip.shape
        dtype, tokens = self.transformer.dtype, clip.movedim(2, -1)  # [B, T, h, w, C]
        seconds = self.temporal_downscale / told["rate"].view(-1, 1, 1, 1, 1)
        out: Tensor = self.transformer(
            tokens.flatten(1, 3).to(dtype),
            told["prompt_embeds"].to(dtype),
            timesteps.repeat_interleave(height * width, dim=1),  # [B, T h w]
            told["prompt_mask"],
            num_frames=length,
            height=height,
            width=width,
            rope_interpolation_scale=(seconds, self.downscale, self.downscale),
            return_dict=False,
        )[0]
        return out.reshape(tokens.shape).movedim(-1, 2).to(clip.dtype)


class LTXVideo(VideoTransformer):
    """LTX-Video from 0.9 on.

    Args:
        parts: what `load_parts` returns.
        scheduler: a diffusers scheduler; its config holds the noise schedule.
        config: the options, none of them None.
    """

    Config = LTXVideoConfig
    config: LTXVideoConfig
    pipeline = "LTXImageToVideoPipeline"
    lora_loader = "LTXVideoLoraLoaderMixin"
    fps = 25.0
    size = (512, 704)

    def __init__(self, parts: Parts, scheduler: Any, config: LTXVideoConfig) -> None:
        codec = LTXVideoCodec(parts.vae)
        network = LTXVideoNetwork(
            parts.transformer,
            NoiseSchedule.from_config(scheduler.config),
            downscale=codec.downscale,
            temporal_downscale=codec.temporal_downscale,
        )
        sampler = Sampler(steps=50, guidance_scale=3.0, image_guidance_scale=1.0)
        super().__init__(parts, network, scheduler, codec, config, sampler)
        self.middle = f"transformer.transformer_blocks.{len(parts.transformer.transformer_blocks) // 2}"

    @classmethod
    def opens(cls, folder: Path) -> bool:
        """A folder with an LTXVideoTransformer3DModel."""
        return is_transformer(folder, TRANSFORMER)

    @classmethod
    def load(cls, source: str, config: SystemConfig, saved: SystemConfig | None) -> LTXVideo:
        """Any diffusers folder of LTX-Video, for image- or text-to-video, or what `save` wrote.

        Raises InputError for a transformer that doesn't take a token a latent pixel of its autoencoder.
        """
        source = downloaded(source, PARTS)
        parts = load_parts(
            source,
            vae=diffusers.AutoencoderKLLTXVideo,
            text_encoder=transformers.T5EncoderModel,
            tokenizer=transformers.T5TokenizerFast,
            transformer=diffusers.LTXVideoTransformer3DModel,
        )
        found, channels = parts.transformer.config, parts.vae.config.latent_channels
        check_text_width(source, parts.text_encoder, found.caption_channels)
        if (found.in_channels, found.out_channels, found.patch_size, found.patch_size_t) != (channels, channels, 1, 1):
            raise InputError(
                f"the transformer of model {source!r} has in_channels={found.in_channels}, out_channels="
                f"{found.out_channels}, patch_size={found.patch_size}, patch_size_t={found.patch_size_t}; expected "
                f"{channels}, {channels}, 1 and 1: use another base model"
            )
        start = saved if isinstance(saved, LTXVideoConfig) else PUBLISHED
        return cls(parts, load_scheduler(source, is_base=False), cast(LTXVideoConfig, config).over(start))

    @classmethod
    def random(cls, config: SystemConfig) -> LTXVideo:
        """Windows of 9 frames (three latents) of 64 x 64 pixels."""
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        )
        parts = tiny_parts()
        merged = cast(LTXVideoConfig, config).over(replace(PUBLISHED, frames=9, text_length=16))
        system = cls(parts, scheduler, merged)
        system.size = (64, 64)
        return system

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """prompt_embeds: T5's last hidden states [N, L, E], padding seen and encoded too; prompt_mask [N, L]."""
        ids, mask = self.tokenize(prompts)
        return {"prompt_embeds": self.text_encoder(ids).last_hidden_state, "prompt_mask": mask.bool()}

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
        """As other video transformers', and rate [B], frames a second."""
        rate = torch.full((len(given),), self.fps, device=given.device) if fps is None else fps
        return super().condition(given, text, noise=noise) | {"rate": rate}

    def set_timesteps(self, scheduler: Any, steps: int, latent: Sequence[int], *, device: Any = None) -> None:
        """With sigmas from 1 to 1 / steps, as LTX-Video is sampled, shifted by the number of tokens where the scheduler
        shifts dynamically."""
        if not {"sigmas", "mu"} <= inspect.signature(scheduler.set_timesteps).parameters.keys():
            return super().set_timesteps(scheduler, steps, latent, device=device)
        if steps == 1 and scheduler.config.get("shift_terminal"):
            raise InputError("steps=1: the scheduler's shift_terminal says where the last of several ends; expected 2")
        sigmas = np.linspace(1, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=_mu(scheduler.config, latent), device=device)

    def timestep_shift(self, latent: Sequence[int]) -> float:
        """exp(mu) where the scheduler shifts dynamically, as LTX-Video was trained; the scheduler's shift otherwise."""
        config = self.scheduler.config
        return math.exp(_mu(config, latent)) if config.get("use_dynamic_shifting") else float(config.get("shift", 1.0))


def _mu(config: Mapping[str, Any], latent: Sequence[int]) -> float:
    """The logarithm of the shift: linear in a window's tokens, through two points that the scheduler's config says.

    Source: Esser et al. (arXiv 2403.03206), section 5.3.2; linear as in FLUX and LTX-Video.
    """
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(low + (high - low) * (math.prod(latent) - few) / (many - few))


def tiny_parts(
    *,
    tokenizer: Any = None,
    channels: int = 4,
    width: int = 8,
    heads: int = 2,
    layers: int = 2,
    text_width: int = 32,
) -> Parts:
    """Tiny parts with random weights.

    Args:
        tokenizer: None = `tiny_tokenizer()`.
        channels: of a latent, which is 8 x 8 pixels and 4 frames after the first.
        width: of the autoencoder's first level.
        heads, layers: of the transformer, whose heads have 24 channels.
    """
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=channels,
        block_out_channels=(width, 2 * width),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(2 * width,) * 2,
        layers_per_block=(1,) * 3,
        decoder_layers_per_block=(1,) * 3,
        spatio_temporal_scaling=(True,) * 2,
        decoder_spatio_temporal_scaling=(True,) * 2,
        decoder_inject_noise=(False,) * 3,
        downsample_type=("conv",) * 2,
        upsample_residual=(False,) * 2,
        upsample_factor=(1,) * 2,
        patch_size=2,
    )
    variance: Any = vae.encoder.conv_out.conv
    nn.init.zeros_(variance.weight[-1])
    nn.init.constant_(variance.bias[-1], -5.0)  # a narrow posterior, as trained ones are
    vae.latents_mean.copy_(0.1 * torch.arange(channels) - 0.2)
    vae.latents_std.copy_(0.5 + 0.1 * torch.arange(channels) / channels)
    tokenizer = tokenizer or tiny_tokenizer()
    text = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer), d_model=text_width, d_kv=8, d_ff=2 * text_width, num_layers=2, num_heads=4
        )
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=heads,
        attention_head_dim=24,
        cross_attention_dim=24 * heads,
        num_layers=layers,
        caption_channels=text_width,
    )
    return Parts(vae, text, tokenizer, transformer)
