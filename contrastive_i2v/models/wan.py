"""Wan: a flow-matching video transformer, told of the given frame in one of two ways.

Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv 2503.20314). Wan 2.1's image-to-video
models have the frame as channels beside the noisy latents (section 5.1): the encoded video of the frame and grey ones
after it, with a mask, and, in the published ones, the embedding that CLIP makes of it. Wan 2.2's TI2V-5B has its clean
latent as the window's first, at timestep 0.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import ftfy
import torch
import transformers
from torch import Tensor, nn

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError
from contrastive_i2v.models.autoencoder import like
from contrastive_i2v.models.loading import downloaded, load_part, load_weights, read_object, save_pipeline
from contrastive_i2v.models.stable_diffusion import grow_inputs, load_scheduler
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
from contrastive_i2v.system import Condition, ImageEmbeds, Size, System, SystemConfig, Text, dropped

ImageCondition = Literal["channels", "clean-latent"]


@dataclass(frozen=True, kw_only=True)
class WanConfig(VideoTransformerConfig):
    """Windows of 81 frames after one given frame. None = as the model has it, or the published value."""

    kind: Literal["wan"] = "wan"
    image_condition: ImageCondition | None = None
    """How the network is told of the given frame: channels beside the noisy latents, as Wan 2.1's image-to-video models
    (a text-to-video model's first layer grows), or its clean latent as the window's first, as Wan 2.2's TI2V-5B."""


PUBLISHED = WanConfig(frames=81, past_frames=1, frame_timesteps=False, text_length=512)
PIPELINES = ("WanImageToVideoPipeline", "WanPipeline")
TRANSFORMER = "WanTransformer3DModel"


class WanNetwork(VideoTransformerNetwork):
    """WanTransformer3DModel over clean given frames and noisy ones."""

    def predict(self, clip: Tensor, timesteps: Tensor, **told: Tensor) -> Tensor:
        """`told`: prompt_embeds [B, L, E]; prompt_mask has no say, as padding is zero."""
        _, _, _, height, width = clip.shape
        _, rows, columns = self.transformer.config.patch_size
        tokens = (height // rows) * (width // columns)
        at = timesteps.repeat_interleave(tokens, dim=1)  # [B, T tokens]
        return _call(self.transformer, clip, at, told["prompt_embeds"])


class WanChannelsNetwork(nn.Module):
    """WanTransformer3DModel with what is known of the video beside the noisy latents."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        known: Tensor,
        prompt_embeds: Tensor,
        image_embeds: Tensor | None = None,
        **unused: Tensor,
    ) -> Tensor:
        """The prediction for the whole window.

        Args:
            noisy: [B, T, C, h, w].
            timesteps: [B].
            known: [B, T, M + C, h, w], a mask for each frame of a latent, and the encoded video.
            prompt_embeds: [B, L, E].
            image_embeds: [B, P, D], for transformers that take them.
        """
        return _call(
            self.transformer, torch.cat([noisy, known.to(noisy)], dim=2), timesteps, prompt_embeds, image_embeds
        )

    def enable_gradient_checkpointing(self) -> None:
        """Less memory for more time; the gradients stay."""
        self.transformer.enable_gradient_checkpointing()


def _call(
    transformer: Any, clip: Tensor, timesteps: Tensor, prompt_embeds: Tensor, image_embeds: Tensor | None = None
) -> Tensor:
    """`[B, T, C, h, w]` -> the prediction, in the dtype of the clip."""
    dtype = transformer.patch_embedding.weight.dtype  # diffusers' own dtype walks all modules
    out: Tensor = transformer(
        clip.transpose(1, 2).to(dtype),
        timesteps,
        prompt_embeds.to(dtype),
        None if image_embeds is None else image_embeds.to(dtype),
        return_dict=False,
    )[0]
    return out.transpose(1, 2).to(clip.dtype)


class Wan(VideoTransformer):
    """Wan 2.1 and 2.2, in either form.

    Args:
        parts: what `load_parts` returns.
        scheduler: a diffusers scheduler; its config holds the noise schedule.
        config: the options, none of them None.
        image_encoder: CLIPVisionModel, for a transformer with image_dim; its `image_processor` too.
    """

    Config = WanConfig
    config: WanConfig
    pipeline = "WanImageToVideoPipeline"
    lora_loader = "WanLoraLoaderMixin"
    fps = 16.0

    def __init__(
        self,
        parts: Parts,
        scheduler: Any,
        config: WanConfig,
        *,
        image_encoder: Any = None,
        image_processor: Any = None,
    ) -> None:
        self.image_encoder, self.image_processor = image_encoder, image_processor
        if image_encoder is not None:
            image_encoder.requires_grad_(False)
        settings = parts.vae.config
        codec = VideoCodec(
            parts.vae,
            mean=settings.latents_mean,
            std=settings.latents_std,
            downscale=settings.scale_factor_spatial,
            temporal_downscale=settings.scale_factor_temporal,
        )
        channels = config.image_condition == "channels"
        network: nn.Module = WanChannelsNetwork(parts.transformer)
        if not channels:
            network = WanNetwork(parts.transformer, NoiseSchedule.from_config(scheduler.config))
        elif config.past_frames != 1 or config.frame_timesteps:
            raise InputError(
                "past_frames, frame_timesteps: with image_condition=channels the network is told of one frame, and one "
                "timestep; expected 1 and False, or image_condition=clean-latent"
            )
        sampler = Sampler(steps=50, guidance_scale=5.0, image_guidance_scale=1.0)
        super().__init__(parts, network, scheduler, codec, config, sampler, regenerates=channels)
        self.sees_pixels = channels
        self.patch = int(parts.transformer.config.patch_size[1])
        self.size: Size = (704, 1280) if codec.downscale == 16 else (480, 832)
        if codec.downscale == 16:
            self.fps = 24.0
        self.middle = f"transformer.blocks.{len(parts.transformer.blocks) // 2}"

    @classmethod
    def opens(cls, folder: Path) -> bool:
        """A folder with a WanTransformer3DModel."""
        return is_transformer(folder, TRANSFORMER)

    @classmethod
    def load(cls, source: str, config: SystemConfig, saved: SystemConfig | None) -> Wan:
        """Any folder of Wan 2.1 or of Wan 2.2's TI2V-5B, for image- or text-to-video, or what `save` wrote.

        Raises InputError for a folder of two transformers (Wan 2.2's A14B) and for an `image_condition` that the
        weights can't have.
        """
        source = downloaded(source, [*PARTS, "image_encoder", "image_processor", "transformer_2/config*"])
        if (Path(source) / "transformer_2").is_dir():
            raise InputError(
                f"model folder {source!r} has two transformers, each for a part of the timesteps (Wan 2.2 A14B); "
                "expected one, as Wan 2.1 and Wan 2.2 TI2V-5B have"
            )
        parts = load_parts(
            source,
            vae=diffusers.AutoencoderKLWan,
            text_encoder=transformers.UMT5EncoderModel,
            tokenizer=transformers.AutoTokenizer,
            transformer=diffusers.WanTransformer3DModel,
        )
        check_text_width(source, parts.text_encoder, parts.transformer.config.text_dim)
        form = _form(source, parts)
        wanted = cast(WanConfig, config)
        merged = wanted.over(replace(PUBLISHED, image_condition=form or "channels"))
        if isinstance(saved, WanConfig):
            merged = wanted.over(saved)
        if form is not None and merged.image_condition != form:
            raise InputError(
                f"image_condition={merged.image_condition}: the transformer of model {source!r} takes the given frame "
                f"by {form}; expected that, or a text-to-video model, which can learn either"
            )
        encoder = processor = None
        if parts.transformer.config.image_dim is not None:
            encoder = load_weights(transformers.CLIPVisionModel, source, "image_encoder", None)
            processor = load_part(transformers.CLIPImageProcessorPil.from_pretrained, source, "image_processor")
        added: tuple[str, ...] = ()
        if form is None and merged.image_condition == "channels":
            noisy = {"noisy": int(parts.vae.config.z_dim)}
            known = {"mask": int(parts.vae.config.scale_factor_temporal), "video": int(parts.vae.config.z_dim)}
            grow_inputs(parts.transformer, "patch_embedding", noisy, noisy | known)
            added = ("transformer.patch_embedding",)
        scheduler = load_scheduler(source, is_base=False)
        system = cls(parts, scheduler, merged, image_encoder=encoder, image_processor=processor)
        system.added = added
        return system

    @classmethod
    def random(cls, config: SystemConfig) -> Wan:
        """Windows of 9 frames (three latents) of 64 x 64 pixels; with channels and a CLIP, as Wan 2.1 has."""
        merged = cast(WanConfig, config).over(replace(PUBLISHED, frames=9, text_length=16, image_condition="channels"))
        channels = merged.image_condition == "channels"
        vae = diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 2, 2],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, -0.4],
            latents_std=[0.5, 0.6, 0.7, 0.8],
        )
        nn.init.zeros_(vae.quant_conv.weight[4:])
        nn.init.constant_(vae.quant_conv.bias[4:], -5.0)  # a narrow posterior, as trained ones are
        tokenizer = tiny_tokenizer()
        text = transformers.UMT5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
        )
        transformer = diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=4 + 4 + 4 if channels else 4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=96,
            num_layers=2,
            image_dim=32 if channels else None,
            added_kv_proj_dim=48 if channels else None,
        )
        scheduler = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        encoder = processor = None
        if channels:
            encoder = transformers.CLIPVisionModel(
                transformers.CLIPVisionConfig(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    image_size=32,
                    patch_size=16,
                )
            )
            processor = transformers.CLIPImageProcessorPil(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            )
        parts = Parts(vae, transformers.UMT5EncoderModel(text), tokenizer, transformer)
        system = cls(parts, scheduler, merged, image_encoder=encoder, image_processor=processor)
        system.size = (64, 64)
        return system

    def parts(self) -> dict[str, nn.Module]:
        if self.image_encoder is None:
            return super().parts()
        # the network stays before the autoencoder, as sampling uses them
        return {"image_encoder": self.image_encoder, **super().parts()}

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """prompt_embeds: UMT5's last hidden states [N, L, E], zero beyond the prompt's end; prompt_mask [N, L]."""
        ids, mask = self.tokenize([_clean(prompt) for prompt in prompts])
        embeds = self.text_encoder(ids, mask).last_hidden_state
        return {"prompt_embeds": embeds * mask.unsqueeze(-1).to(embeds.dtype), "prompt_mask": mask.bool()}

    @torch.no_grad()
    def encode_image(self, pixels: Tensor, length: int) -> ImageEmbeds:
        """image_latents: [B, T, C, h, w], the posterior's mode of the frame with grey frames after it, normalised; and
        image_embeds: [B, P, D], the hidden states of CLIP's last but one layer, for transformers that take them."""
        frames = 1 + (length - 1) * self.codec.temporal_downscale
        grey = pixels.new_zeros(len(pixels), frames - pixels.shape[1], *pixels.shape[2:])
        encoded = self.codec.sample(self.codec.encode(torch.cat([pixels, grey], dim=1))).float()
        image = {"image_latents": self.codec.normalize(encoded)}
        if self.image_encoder is None:
            return image
        side = self.image_encoder.config.image_size
        seen = pixels.new_zeros(len(pixels), 3, side, side)
        if type(pixels) is Tensor and not pixels.is_meta:  # not of shapes alone
            arrays = ((pixels[:, -1] + 1) * 127.5).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
            seen = self.image_processor(images=list(arrays), return_tensors="pt").pixel_values
        states = self.image_encoder(like(self.image_encoder, seen), output_hidden_states=True).hidden_states
        return image | {"image_embeds": states[-2]}

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
        """With channels: known [B, T, M + C, h, w], image_embeds [B, P, D] where there are such, and the text."""
        if not self.sees_pixels:
            return super().condition(given, text, present=present, fps=fps, noise=noise)
        if not image:
            raise InputError("image: expected what encode_image makes of the given frame, got none")
        latents = image["image_latents"]
        size, length, _, height, width = latents.shape
        mask = latents.new_zeros(size, length, self.codec.temporal_downscale, height, width)
        mask[:, 0] = 1
        condition = {"known": torch.cat([mask, latents], dim=2), **text}
        if self.image_encoder is not None:
            condition["image_embeds"] = image["image_embeds"]
        return condition

    def drop(self, condition: Condition, *, image: Tensor, text: Tensor, negative: Text | None = None) -> Condition:
        """With channels: zeros in place of mask, encoded video and embedding."""
        if not self.sees_pixels:
            return super().drop(condition, image=image, text=text, negative=negative)
        seen = {name: dropped(condition[name], image) for name in ("known", "image_embeds") if name in condition}
        return condition | seen | self.drop_text(condition, text, negative)

    def noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        given: Tensor,
        sampling: bool,
        layout: Tensor | None = None,
    ) -> Tensor:
        """Independent; with channels `[B, T, C, h, w]`, as the given frame is generated too."""
        if self.sees_pixels:
            return System.noise(self, shape, generator, given=given, sampling=sampling, layout=layout)
        return super().noise(shape, generator, given=given, sampling=sampling, layout=layout)

    def timestep_shift(self, latent: Sequence[int]) -> float:
        """The scheduler's own: 3 at 480p, 5 at 720p."""
        config = self.scheduler.config
        return float(config.get("flow_shift") or config.get("shift") or 1.0)

    def pipeline_parts(self) -> dict[str, Any]:
        image = {"image_encoder": self.image_encoder, "image_processor": self.image_processor}
        return super().pipeline_parts() | image | {"transformer_2": None}

    def save_weights(self, folder: Path) -> None:
        """A diffusers folder (safetensors) that WanImageToVideoPipeline opens."""
        settings = {"boundary_ratio": None, "expand_timesteps": not self.sees_pixels}
        save_pipeline(folder, self.pipeline, self.pipeline_parts(), **settings)


def _clean(prompt: str) -> str:
    """A prompt as Wan's own code cleans it: broken Unicode mended, HTML's entities and white space undone."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return re.sub(r"\s+", " ", text).strip()


def _form(source: str, parts: Parts) -> ImageCondition | None:
    """How a folder's transformer is told of a given frame; None = it makes videos from text alone.

    Raises InputError for other inputs.
    """
    config, channels = parts.transformer.config, int(parts.vae.config.z_dim)
    known = int(parts.vae.config.scale_factor_temporal) + channels
    inputs, patch = (config.in_channels, config.out_channels), config.patch_size
    index = Path(source) / "model_index.json"
    fits = inputs in ((channels, channels), (channels + known, channels))
    if not fits or patch[0] != 1 or patch[1] != patch[2] or config.pos_embed_seq_len is not None:
        raise InputError(
            f"the transformer of model {source!r} has in_channels={inputs[0]}, out_channels={inputs[1]}, patch_size="
            f"{tuple(patch)}, pos_embed_seq_len={config.pos_embed_seq_len}; expected in_channels {channels} or "
            f"{channels + known}, out_channels {channels}, square patches of one latent frame, and None (a model of "
            "first and last frames has a number): use another base model"
        )
    if inputs[0] == channels + known:
        return "channels"
    expands = index.is_file() and read_object(index).get("expand_timesteps")
    return "clean-latent" if expands else None
