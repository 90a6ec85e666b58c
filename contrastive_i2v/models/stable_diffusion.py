"""What systems on Stable Diffusion's parts share: the five parts, their text, their cache key, their scheduler."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from torch import Tensor, nn

from contrastive_i2v.diffusion.schedule import read_steps
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.models.autoencoder import ImageCodec, device_of
from contrastive_i2v.models.loading import (
    hash_tensor,
    load_part,
    load_tokenizer,
    load_weights,
    missing_parts,
    read_object,
    save_pipeline,
    variants,
)
from contrastive_i2v.models.temporal import TemporalLayers, VideoUNet
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, System, Text, dropped


class Parts(NamedTuple):
    """The parts of a Stable Diffusion 1.x or 2.x folder but its scheduler."""

    vae: Any
    """AutoencoderKL; images [F, 3, H, W] in [-1, 1] <-> latents [F, C, H/downscale, W/downscale]."""
    text_encoder: Any
    """CLIPTextModel; its last hidden state [N, L, E] is the prompt embedding."""
    tokenizer: Any
    """CLIPTokenizer."""
    unet: Any
    """UNet2DConditionModel with C output channels."""


class StableDiffusion(System):
    """A system on Stable Diffusion's parts. `vae` and `text_encoder` are frozen; all are in eval mode.

    Args:
        parts: what `load_parts` returns.
        network: the module around the UNet.
        scheduler: a diffusers scheduler; its config holds the noise schedule and the prediction type.
        sampler: None = 20 steps at InstructPix2Pix's guidance.
    """

    codec: ImageCodec
    middle = "unet.mid_block"

    def __init__(self, parts: Parts, network: nn.Module, scheduler: Any, sampler: Sampler | None = None) -> None:
        self.vae, self.text_encoder, self.tokenizer, self.unet = parts
        for module in (self.vae, self.text_encoder):
            module.requires_grad_(False)
        self.network, self.scheduler = network, scheduler
        self.codec = ImageCodec(self.vae)
        self.sampler = sampler or Sampler()
        side = int(self.unet.config.sample_size) * self.codec.downscale
        self.size = (side, side)

    def parts(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.text_encoder, "network": self.network, "vae": self.vae}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the VAE's and text encoder's weights (as float32) and the tokenizer's vocabulary.

        The dtype of the files doesn't count. Computed once: the encoders are frozen.
        """
        total = hashlib.sha256()
        for module in (self.vae, self.text_encoder):
            for key, value in sorted(module.named_parameters()):
                hash_tensor(total, key, value)
        total.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        total.update(repr(self._prompt_length).encode())
        return total.hexdigest()

    @torch.no_grad()
    def caption_features(self, text: Text) -> Tensor:
        """The mean of the prompt's embeddings over its tokens, padding included."""
        return text["prompt_embeds"].float().mean(1)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """prompt_embeds: CLIP's last hidden states [N, L, E], padded and cut to the tokenizer's length."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._prompt_length,
            truncation=True,
            return_tensors="pt",
        )
        device = device_of(self.text_encoder)
        uses_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if uses_mask else None
        return {"prompt_embeds": self.text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]}

    @cached_property
    def null_embeds(self) -> Tensor:
        """The prompt embedding of "", [1, L, E]."""
        return self.encode_text([""])["prompt_embeds"]

    def drop_text(self, condition: Condition, text: Tensor, negative: Text | None) -> Condition:
        """What of the condition differs without the text of some samples: the prompt's embeddings."""
        null = negative["prompt_embeds"] if negative else self.null_embeds
        return {"prompt_embeds": dropped(condition["prompt_embeds"], text, null)}

    @property
    def _prompt_length(self) -> int:
        # a tokenizer without a config reports a length of 1e30
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    def save_weights(self, folder: Path) -> None:
        """A diffusers folder (safetensors) that StableDiffusionPipeline opens."""
        parts = {name: getattr(self, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        parts |= {"safety_checker": None, "feature_extractor": None}
        save_pipeline(folder, "StableDiffusionPipeline", parts, requires_safety_checker=False)


class VideoStableDiffusion(StableDiffusion):
    """A system whose UNet has temporal layers attached, by its network.

    Args:
        network: holds the UNet and the temporal layers.
    """

    starts_from = ("instruct-pix2pix",)

    def __init__(self, parts: Parts, network: VideoUNet, scheduler: Any, sampler: Sampler) -> None:
        super().__init__(parts, network, scheduler, sampler)
        self.temporal = network.temporal

    def save_weights(self, folder: Path) -> None:
        """A Stable Diffusion folder, which StableDiffusionPipeline opens as an image model, and `temporal/`."""
        super().save_weights(folder)
        self.temporal.save_pretrained(folder / "temporal", safe_serialization=True)


def load_temporal(source: str) -> TemporalLayers:
    """The temporal layers that `save_weights` of a video system wrote. Raises InputError where a folder lacks them."""
    if Path(source).is_dir() and not (Path(source) / "temporal" / "config.json").is_file():
        raise InputError(
            f"model folder {source!r} lacks temporal/, the temporal layers beside unet/; expected the whole folder "
            "that training wrote: copy it again"
        )
    temporal: TemporalLayers = load_weights(TemporalLayers, source, "temporal", None)
    return temporal


def load_parts(source: str, *, unet: Any = None) -> Parts:
    """The parts of a folder or hub id, with another UNet where one is given. Raises InputError for missing ones, and
    for parts that don't fit each other."""
    files = variants(source)
    vae = load_weights(diffusers.AutoencoderKL, source, "vae", files["vae"])
    if unet is None:
        unet = load_weights(diffusers.UNet2DConditionModel, source, "unet", files["unet"])
    text_encoder = load_weights(transformers.CLIPTextModel, source, "text_encoder", files["text_encoder"])
    tokenizer = load_tokenizer(transformers.CLIPTokenizer, source)
    _check_prompt_length(source, tokenizer)
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise InputError(
            f"the UNet of model {source!r} has cross_attention_dim={unet.config.cross_attention_dim}, its text "
            f"encoder hidden_size={text_encoder.config.hidden_size}; expected the same: take both from one Stable "
            "Diffusion model"
        )
    return Parts(vae, text_encoder, tokenizer, unet)


def is_stable_diffusion(folder: Path) -> bool:
    """Whether a folder holds Stable Diffusion's parts, with a plain 2-D UNet."""
    if missing_parts(folder):
        return False
    config = read_object(folder / "unet" / "config.json")
    return config.get("_class_name") == "UNet2DConditionModel" and not any(
        (folder / part).exists() for part in ("motion_adapter", "temporal")
    )


def keep_noisy_inputs(source: str, unet: Any, channels: int) -> None:
    """Let a UNet's first convolution take noisy latents alone, in place: an InstructPix2Pix UNet loses its image.

    Raises InputError for a UNet of another kind.
    """
    if unet.config.in_channels not in (channels, 2 * channels) or unet.config.out_channels != channels:
        raise InputError(
            f"the UNet of model {source!r} has in_channels={unet.config.in_channels}, "
            f"out_channels={unet.config.out_channels}; expected in_channels {channels} (text-to-image) or "
            f"{2 * channels} (InstructPix2Pix) and out_channels {channels}: use another base model"
        )
    noisy = {"noisy": channels}
    before = noisy if unet.config.in_channels == channels else noisy | {"image": channels}
    grow_inputs(unet, "conv_in", before, noisy)


def grow_inputs(model: Any, layer: str, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Let a model's first convolution take other inputs, in place; with more of them its output stays the same.

    The weights of an input that was there before move with it, those of a new one are zero, those of one that is left
    out go, and the bias is kept: new inputs have no say until training gives them one.

    Args:
        layer: the convolution's name in the model, a diffusers model with in_channels.
        before, after: channels of each input by its name, in order.
    """
    if before == after:
        return
    old: Any = getattr(model, layer)
    new = type(old)(
        sum(after.values()),
        old.out_channels,
        kernel_size=old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        bias=old.bias is not None,
    ).to(old.weight)
    known = dict(zip(before, torch.split(old.weight.detach(), list(before.values()), dim=1), strict=True))
    with torch.no_grad():
        new.weight.zero_()
        for name, weight in zip(after, torch.split(new.weight, list(after.values()), dim=1), strict=True):
            if name in known:
                weight.copy_(known[name])
        if old.bias is not None:
            new.bias.copy_(old.bias)
    setattr(model, layer, new)
    model.register_to_config(in_channels=new.in_channels)


def embed_number(unet: Any) -> None:
    """Give a UNet the embedding of a number, as diffusers' class embedding of the timestep kind, in place.

    It starts as the timestep's embedding with a last layer of zero, so the output stays the same.
    """
    unet.class_embedding = copy.deepcopy(unet.time_embedding)
    nn.init.zeros_(unet.class_embedding.linear_2.weight)
    nn.init.zeros_(unet.class_embedding.linear_2.bias)
    unet.register_to_config(class_embed_type="timestep")


def _check_prompt_length(source: str, tokenizer: Any) -> None:
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not length >= 2:
        raise InputError(
            f"the tokenizer of model {source!r} has model_max_length={length!r}; expected a number of tokens, at least "
            "2, the start's and the end's: set it in tokenizer/tokenizer_config.json (Stable Diffusion 1.x has 77)"
        )


def load_scheduler(source: str, *, is_base: bool) -> Any:
    config: Any = load_part(diffusers.DDIMScheduler.load_config, source, "scheduler")
    if not isinstance(config, dict):
        raise InputError(
            f"scheduler/scheduler_config.json of model {source!r} holds a {type(config).__name__}; expected a JSON "
            "object: save the scheduler again with diffusers"
        )
    try:
        return _make_scheduler(config, is_base=is_base)
    except InputError as error:
        raise InputError(f"scheduler/scheduler_config.json of model {source!r}: {error}") from error
    except Exception as error:  # of whatever diffusers makes of a value
        raise InputError(
            f"scheduler/scheduler_config.json of model {source!r}: diffusers can't make a scheduler of it "
            f"({one_line(error)}); expected what save_pretrained of a scheduler writes"
        ) from error


def _make_scheduler(config: dict[str, Any], *, is_base: bool) -> Any:
    read_steps(config)
    name = str(config.get("_class_name", "DDIMScheduler"))
    if is_base and not name.startswith("FlowMatch"):
        # clip_sample=False: latents aren't confined to [-1, 1], and PNDM configs don't say
        return diffusers.DDIMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))
    cls: Any = getattr(diffusers, name, None)
    if not _is_scheduler(cls):
        raise InputError(
            f"names {name!r}; expected a scheduler "
            "of the installed diffusers: name DDIMScheduler there, or update diffusers"
        )
    return cls.from_config(config)


def _is_scheduler(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)
