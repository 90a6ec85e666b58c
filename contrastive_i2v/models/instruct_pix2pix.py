"""InstructPix2Pix on Stable Diffusion 1.x parts: image latents enter through extra input channels.

Brooks, Holynski, Efros, "InstructPix2Pix: Learning to Follow Image Editing Instructions" (arXiv 2211.09800),
section 3.2: the UNet of a text-to-image model gets the conditioning image's latents beside the noisy ones.
Its first convolution grows to take them; the new weights start at zero, so training starts at the base model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    SchedulerMixin,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from contrastive_i2v.errors import InputError
from contrastive_i2v.models.loading import load_part, load_weights, locate


@dataclass
class InstructPix2Pix:
    """The five parts of a latent image-to-image diffusion model, and what training and sampling ask of them.

    Only `unet` is meant to be trained: `from_pretrained` freezes `vae` and `text_encoder`, all in eval mode.

    Attributes:
        vae: AutoencoderKL; images [F, 3, H, W] in [-1, 1] <-> latents [F, C, H/downscale, W/downscale].
        text_encoder: CLIPTextModel; its last hidden state [N, L, E] is the prompt embedding.
        tokenizer: CLIPTokenizer.
        unet: UNet2DConditionModel with 2C input and C output channels.
        scheduler: a diffusers scheduler; its config holds the noise schedule and the prediction type.
    """

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> InstructPix2Pix:
        """Load Stable Diffusion 1.x (`conv_in` grows from C to 2C channels) or an already converted model.

        Args:
            name: "tiny" (packaged, no download), a diffusers folder, or a hub id. Safetensors only.
            dtype: weights are converted to it, whatever the files hold.
            device: where the parts go.

        A base model gets a DDIM scheduler made from its scheduler's config (the same noise schedule); a
        converted model, or one with a flow-matching scheduler, keeps the scheduler its folder names.

        Raises:
            InputError: missing parts, only pickled weights, an id that can't be fetched, or a UNet whose
                channels fit neither form.
        """
        source, variants = locate(name)
        vae = load_weights(AutoencoderKL, source, "vae", variants["vae"])
        unet = load_weights(UNet2DConditionModel, source, "unet", variants["unet"])
        text_encoder = load_weights(CLIPTextModel, source, "text_encoder", variants["text_encoder"])
        tokenizer = load_part(CLIPTokenizer.from_pretrained, source, "tokenizer")
        channels = int(vae.config.latent_channels)
        _check_parts(str(name), unet, text_encoder, channels)
        is_base = unet.config.in_channels == channels
        scheduler = _load_scheduler(source, is_base=is_base)
        if is_base:
            expand_conv_in(unet, channels)
        model = cls(vae, text_encoder, tokenizer, unet, scheduler)
        for module in (vae, text_encoder):
            module.requires_grad_(False)
        return model.to(device, dtype)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> InstructPix2Pix:
        """Move the modules in place, put them in eval mode, and return self."""
        for module in (self.vae, self.text_encoder, self.unet):
            module.to(device=device, dtype=dtype).eval()
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers folder (safetensors); StableDiffusionInstructPix2PixPipeline opens it too."""
        pipeline = StableDiffusionInstructPix2PixPipeline(
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

    @property
    def scaling_factor(self) -> float:
        """Diffusion latents are VAE latents times this (0.18215 for Stable Diffusion 1.x)."""
        return float(self.vae.config.scaling_factor)

    @property
    def latent_channels(self) -> int:
        """C: channels of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def downscale(self) -> int:
        """Image pixels to one latent pixel, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the VAE's and text encoder's weights (as float32) and the tokenizer's vocabulary.

        Equal fingerprints mean interchangeable latents and prompt embeddings; the dtype of the files doesn't
        count. Computed once: the encoders are frozen.
        """
        digest = hashlib.sha256()
        for module in (self.vae, self.text_encoder):
            for key, value in sorted(module.named_parameters()):
                digest.update(f"{key}{tuple(value.shape)}".encode())
                digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy())
        digest.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        digest.update(repr(self._prompt_length).encode())
        return digest.hexdigest()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor, *, chunk: int = 8) -> Tensor:
        """Moments of the VAE's posterior, unscaled: mean and log-variance along channels.

        Args:
            pixels: [F, 3, H, W] float in [-1, 1]; H and W multiples of `downscale`.
            chunk: images encoded at a time.

        Returns:
            [F, 2C, h, w]. `mean, logvar = moments.chunk(2, dim=1)`; the mean is the mode that conditions the
            UNet, and (mean + exp(logvar / 2) * noise) * scaling_factor is a diffusion target.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or any(side % self.downscale for side in pixels.shape[2:]):
            raise InputError(
                f"pixels has shape {tuple(pixels.shape)}; expected [F, 3, H, W] with H and W multiples of "
                f"{self.downscale}: resize the images first"
            )
        parts = []
        for part in torch.split(pixels, chunk):
            posterior = self.vae.encode(self._like(self.vae, part)).latent_dist
            parts.append(torch.cat([posterior.mean, posterior.logvar], dim=1))  # [f, 2C, h, w]
        return torch.cat(parts)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """CLIP's last hidden states [N, L, E], padded and cut to the tokenizer's length; "" is no prompt."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._prompt_length,
            truncation=True,
            return_tensors="pt",
        )
        device = _first_parameter(self.text_encoder).device
        uses_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if uses_mask else None
        embeds: Tensor = self.text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]  # [N, L, E]
        return embeds

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, chunk: int = 8) -> Tensor:
        """Pixels [F, 3, H, W], clamped to [-1, 1], of scaled latents [F, C, h, w]; `chunk` at a time."""
        parts = [
            self.vae.decode(self._like(self.vae, part) / self.scaling_factor, return_dict=False)[0]
            for part in torch.split(latents, chunk)
        ]
        return torch.cat(parts).clamp(-1, 1)

    def denoiser(self, noisy: Tensor, timesteps: Tensor, image_latents: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The UNet's prediction: unet(cat([noisy, image_latents], channels), timesteps, prompt_embeds).

        Args:
            noisy: [B, C, h, w] scaled noisy latents (after the scheduler's `scale_model_input`).
            timesteps: [B] or a scalar.
            image_latents: [B, C, h, w], the posterior mode, *unscaled*, as InstructPix2Pix was trained; zeros
                for no image.
            prompt_embeds: [B, L, E].

        Returns:
            [B, C, h, w]
        """
        inputs = self._like(self.unet, torch.cat([noisy, image_latents.to(noisy.dtype)], dim=1))  # [B, 2C, h, w]
        embeds = self._like(self.unet, prompt_embeds)
        prediction: Tensor = self.unet(inputs, timesteps, encoder_hidden_states=embeds, return_dict=False)[0]
        return prediction

    @property
    def _prompt_length(self) -> int:
        # a tokenizer without a config reports a length of 1e30
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    @staticmethod
    def _like(module: nn.Module, value: Tensor) -> Tensor:
        weight = _first_parameter(module)
        return value.to(weight.device, weight.dtype)


def expand_conv_in(unet: Any, extra_channels: int) -> None:
    """Let a UNet's first convolution take `extra_channels` more inputs, in place; its output stays the same.

    weight' = [weight, 0], bias' = bias: the new channels have no say until training gives them one.
    """
    old: nn.Conv2d = unet.conv_in
    new = nn.Conv2d(
        old.in_channels + extra_channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)


def _check_parts(name: str, unet: Any, text_encoder: Any, channels: int) -> None:
    config = unet.config
    if config.in_channels not in (channels, 2 * channels) or config.out_channels != channels:
        raise InputError(
            f"the UNet of model {name!r} has in_channels={config.in_channels}, "
            f"out_channels={config.out_channels}; expected in_channels {channels} (Stable Diffusion 1.x) or "
            f"{2 * channels} (InstructPix2Pix) and out_channels {channels}: use a text-to-image or "
            "InstructPix2Pix model, not an inpainting or depth one"
        )
    if config.cross_attention_dim != text_encoder.config.hidden_size:
        raise InputError(
            f"the UNet of model {name!r} has cross_attention_dim={config.cross_attention_dim}, its text "
            f"encoder hidden_size={text_encoder.config.hidden_size}; expected the same: take both from "
            "one Stable Diffusion 1.x model"
        )


def _load_scheduler(source: str, *, is_base: bool) -> Any:
    config: dict[str, Any] = load_part(DDIMScheduler.load_config, source, "scheduler")
    name = str(config.get("_class_name", "DDIMScheduler"))
    if is_base and not name.startswith("FlowMatch"):
        # clip_sample=False: latents aren't confined to [-1, 1], and PNDM configs don't say
        return DDIMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))
    cls: Any = getattr(diffusers, name, None)
    if not _is_scheduler(cls):
        raise InputError(
            f"scheduler/scheduler_config.json of model {source!r} names {name!r}; expected a scheduler "
            "of the installed diffusers: name DDIMScheduler there, or update diffusers"
        )
    return cls.from_config(config)


def _is_scheduler(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, SchedulerMixin)


def _first_parameter(module: nn.Module) -> nn.Parameter:
    return next(module.parameters())
