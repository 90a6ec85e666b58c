"""What systems on flow-matching video transformers share: a causal video codec, a T5 text encoder, clean given frames.

The network sees a window of latent frames, the given ones first. Each frame has a timestep of its own, which all of its
tokens are told: given frames are clean and have timestep 0, generated ones are noisy. Without the image the given
frames are noise as well, at the timestep of the others, and the network makes a video from text.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.models.autoencoder import device_of, like
from contrastive_i2v.models.history import drop_history, noise_history
from contrastive_i2v.models.loading import hash_tensor, load_tokenizer, load_weights, read_object, save_pipeline
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, Dtype, ImageEmbeds, System, SystemConfig, Text, Window, dropped


@dataclass(frozen=True, kw_only=True)
class VideoTransformerConfig(SystemConfig):
    """The options that all video transformers have; None = as the model has it, or the family's own."""

    frames: int | None = None
    """Frames of a window, the given ones included: 1, and a multiple of the frames of a latent. Nothing in the weights
    depends on it."""
    past_frames: int | None = None
    """Most given latent frames of a window, its history, of which a video's first window has one; the family's: 1."""
    frame_timesteps: bool | None = None
    """Train every frame at a timestep of its own, given ones too: for history guidance; the family's: False."""
    text_length: int | None = None
    """Tokens of a prompt."""
    text_dtype: Dtype | None = None
    """What the text encoder is kept in and computes in, for latents' cache, training and sampling alike; None = as the
    rest of the model, which is float32 for training."""

    def __post_init__(self) -> None:
        check_fields(self, {"frames": 1, "past_frames": 1, "text_length": 1})


class VideoCodec:
    """A `Codec` over one of diffusers' causal video autoencoders: latents are (its own - mean) / std by channel.

    Args:
        vae: AutoencoderKL*; its first latent frame is made of the first frame alone.
        mean, std: C numbers each.
        downscale, temporal_downscale: pixels to a latent pixel along each side, and frames to a latent frame.
        options: further arguments of `vae.decode` for a batch of so many.
    """

    def __init__(
        self,
        vae: Any,
        *,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        downscale: int,
        temporal_downscale: int,
        options: Callable[[int], dict[str, Any]] = lambda size: {},
    ) -> None:
        self.vae, self.options = vae, options
        self.downscale, self.temporal_downscale = downscale, temporal_downscale
        self.mean, self.std = (torch.as_tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.channels = len(self.mean)
        self.scale: float | Tensor = 1 / self.std

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """`[B, F, 3, H, W]` in [-1, 1] -> mean and log-variance of the posterior along channels, `[B, f, 2C, h, w]`."""
        self._check(pixels)
        posterior = self.vae.encode(like(self.vae, pixels.transpose(1, 2))).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1).transpose(1, 2)

    def _check(self, pixels: Tensor) -> None:
        fits = pixels.ndim == 5 and pixels.shape[2] == 3 and not any(side % self.downscale for side in pixels.shape[3:])
        if not fits or (pixels.shape[1] - 1) % self.temporal_downscale:
            raise InputError(
                f"pixels has shape {tuple(pixels.shape)}; expected [B, F, 3, H, W] with F = 1 + a multiple of "
                f"{self.temporal_downscale}, and H and W multiples of {self.downscale}: cut and resize the frames first"
            )

    def sample(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """mean + exp(logvar / 2) * noise, or the mean: `[..., 2C, h, w]` -> `[..., C, h, w]`."""
        mean, logvar = raw.chunk(2, dim=-3)
        return mean if noise is None else mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise

    def normalize(self, own: Tensor) -> Tensor:
        """(z - mean) * (1 / std), the order in which diffusers' pipelines round."""
        return (own - self.mean.to(own)) * (1 / self.std.to(own))

    def denormalize(self, latents: Tensor) -> Tensor:
        """x / (1 / std) + mean."""
        return latents / (1 / self.std.to(latents)) + self.mean.to(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """`[B, f, C, h, w]` -> `[B, 1 + (f - 1) temporal_downscale, 3, H, W]`, clamped to [-1, 1]."""
        own = self.denormalize(like(self.vae, latents)).transpose(1, 2)
        pixels: Tensor = self.vae.decode(own, return_dict=False, **self.options(len(own)))[0]
        return pixels.transpose(1, 2).clamp(-1, 1)


class VideoTransformerNetwork(nn.Module):
    """A transformer that sees the given frames, clean or noised, before the generated ones."""

    def __init__(self, transformer: Any, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.transformer, self.schedule = transformer, schedule

    @abstractmethod
    def predict(self, clip: Tensor, timesteps: Tensor, **told: Tensor) -> Tensor:
        """The transformer's prediction `[B, T, C, h, w]` for a clip `[B, T, C, h, w]` at timesteps `[B, T]`."""

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        history: Tensor,
        history_noise: Tensor,
        without_image: Tensor | None = None,
        history_timesteps: Tensor | None = None,
        **told: Tensor,
    ) -> Tensor:
        """The prediction for the noisy frames.

        Args:
            noisy: [B, G, C, h, w].
            timesteps: [B] or [B, G].
            history: [B, n, C, h, w], the given frames, normalised.
            history_noise: [B, n, C, h, w].
            without_image: bool [B]; where it is True the given frames are noised to t, elsewhere clean.
            history_timesteps: [B, n], in place of without_image: the given frames are noised to these.
            told: what `predict` takes.

        Returns:
            [B, G, C, h, w]
        """
        count = history.shape[1]
        own = timesteps.reshape(len(noisy), -1).expand(-1, noisy.shape[1])
        if history_timesteps is None:
            assert without_image is not None
            history_timesteps = (own[:, :1] * without_image[:, None]).expand(-1, count)
        shown = self.schedule.add_noise(history, history_noise, history_timesteps)
        clip = torch.cat([shown.to(noisy.dtype), noisy], dim=1)
        return self.predict(clip, torch.cat([history_timesteps.to(own), own], dim=1), **told)[:, count:]

    def enable_gradient_checkpointing(self) -> None:
        """Less memory for more time; the gradients stay."""
        self.transformer.enable_gradient_checkpointing()


class Parts(NamedTuple):
    """The parts of a folder but its scheduler."""

    vae: Any
    text_encoder: Any
    """A T5 or UMT5 encoder; its last hidden state [N, L, E] is the prompt embedding."""
    tokenizer: Any
    transformer: Any


class VideoTransformer(System):
    """A system on a video transformer. All parts but the transformer are frozen; all are in eval mode.

    Args:
        parts: what `load_parts` returns.
        network: around the transformer.
        scheduler: a diffusers scheduler; its config holds the noise schedule.
        codec: around the VAE.
        config: the options, none of them None.
        sampler: what the family is sampled with.
    """

    pipeline: str
    """The class of diffusers' image-to-video pipeline."""
    patch: int = 1
    """Latent pixels along each side of a token."""
    lora_module = "transformer"
    any_length = True
    drops_absent = True
    config: VideoTransformerConfig
    codec: VideoCodec

    def __init__(
        self,
        parts: Parts,
        network: nn.Module,
        scheduler: Any,
        codec: VideoCodec,
        config: VideoTransformerConfig,
        sampler: Sampler,
        *,
        regenerates: bool = False,
    ) -> None:
        self.vae, self.text_encoder, self.tokenizer, self.transformer = parts
        for module in (self.vae, self.text_encoder):
            module.requires_grad_(False)
        if config.text_dtype is not None:
            self.precisions = {"text_encoder": getattr(torch, config.text_dtype)}
            self.text_encoder.to(dtype=self.precisions["text_encoder"])
        self.network, self.scheduler, self.codec = network, scheduler, codec
        self.config, self.sampler = config, sampler
        self.frame_timesteps = bool(config.frame_timesteps)
        frames, downscale = cast(int, config.frames), codec.temporal_downscale
        if (frames - 1) % downscale:
            fits = 1 + max(1, round((frames - 1) / downscale)) * downscale
            raise InputError(
                f"frames={frames}: a latent of {config.kind} holds {downscale} frames after the first; expected 1 + a "
                f"multiple of {downscale}, the nearest is {fits}"
            )
        past = cast(int, config.past_frames)
        self.window = Window(1 + (frames - 1) // downscale, tuple(range(past)), regenerates=regenerates)

    @property
    def size_step(self) -> int:
        return self.codec.downscale * self.patch

    def parts(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.text_encoder, "network": self.network, "vae": self.vae}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the frozen parts' weights and buffers (as float32), the tokenizer's vocabulary, the prompts'
        length and the text encoder's precision."""
        total = hashlib.sha256()
        for name, module in self.parts().items():
            tensors = [*module.named_parameters(), *module.named_buffers()]
            for key, value in sorted(tensors) if module is not self.network else ():
                hash_tensor(total, f"{name}.{key}", value)
        total.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        total.update(repr((self.config.text_length, self.sees_pixels)).encode())
        total.update((self.config.text_dtype or "").encode())
        return total.hexdigest()

    @cached_property
    def null_text(self) -> Text:
        """The text of "", [1, *] each."""
        return self.encode_text([""])

    def drop_text(self, condition: Condition, text: Tensor, negative: Text | None) -> Condition:
        """What of the condition differs without the text of some samples."""
        return {name: dropped(condition[name], text, null) for name, null in (negative or self.null_text).items()}

    @torch.no_grad()
    def caption_features(self, text: Text) -> Tensor:
        """The mean of the prompt's embeddings over its tokens."""
        mask = text["prompt_mask"].unsqueeze(-1).float()
        return (text["prompt_embeds"].float() * mask).sum(1) / mask.sum(1).clamp(min=1)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask [N, L], padded and cut to the prompts' length, where the text encoder is."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.config.text_length,
            truncation=True,
            return_tensors="pt",
        )
        device = device_of(self.text_encoder)
        return tokens.input_ids.to(device), tokens.attention_mask.to(device)

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
        """history and history_noise [B, n, C, h, w], the text, and without_image [B]; in its place with frame_timesteps
        history_timesteps [B, n], the cleanest."""
        if noise is None:
            raise InputError("noise: expected [B, n, C, h, w], the given frames', as `noise` draws it; got None")
        condition = {"history": self.codec.normalize(given), "history_noise": noise.to(given.dtype), **text}
        if self.frame_timesteps:
            return condition | {"history_timesteps": torch.zeros(given.shape[:2], device=given.device)}
        return condition | {"without_image": torch.zeros(len(given), dtype=torch.bool, device=given.device)}

    def drop(self, condition: Condition, *, image: Tensor, text: Tensor, negative: Text | None = None) -> Condition:
        """The given latents noised to t, or with frame_timesteps to the noisiest timestep, in place of the image; the
        text of "" in place of the prompt."""
        without = drop_history(condition, image, self.schedule)
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
        """Independent, `[B, n + G, C, h, w]`, the given frames' first."""
        size, generated, *latent = shape
        whole = (size, given.shape[1] + generated, *latent)
        return super().noise(whole, generator, given=given, sampling=sampling, layout=layout)

    def pipeline_parts(self) -> dict[str, Any]:
        """Every part that the pipeline's folder has, by its name there."""
        parts = {"vae": self.vae, "text_encoder": self.text_encoder, "tokenizer": self.tokenizer}
        return parts | {"transformer": self.transformer, "scheduler": self.scheduler}

    def save_weights(self, folder: Path) -> None:
        """A diffusers folder (safetensors) that the family's image-to-video pipeline opens."""
        save_pipeline(folder, self.pipeline, self.pipeline_parts())


def is_transformer(folder: Path, name: str) -> bool:
    """Whether a folder's transformer is of this class."""
    file = folder / "transformer" / "config.json"
    return file.is_file() and read_object(file).get("_class_name") == name


PARTS = ("vae", "text_encoder", "tokenizer", "transformer", "scheduler")


def load_parts(source: str, *, vae: Any, text_encoder: Any, tokenizer: Any, transformer: Any) -> Parts:
    """The parts of a folder, of these classes.

    Raises InputError for missing ones, and for a transformer of another family.
    """
    folder = Path(source)
    needed = {"vae": "config.json", "text_encoder": "config.json", "transformer": "config.json"}
    needed |= {"scheduler": "scheduler_config.json", "tokenizer": ""}
    missing = [f"{part}/{file}" for part, file in needed.items() if not (folder / part / file).exists()]
    if missing:
        raise InputError(
            f"model folder {source!r} lacks {', '.join(missing)}; expected what save_pretrained of a "
            f"{transformer.__name__}'s pipeline writes: vae/, text_encoder/, tokenizer/, transformer/ and scheduler/"
        )
    if not is_transformer(folder, transformer.__name__):
        found = read_object(folder / "transformer" / "config.json").get("_class_name")
        raise InputError(
            f"model folder {source!r} has a transformer of class {found}; expected {transformer.__name__}: give the "
            "kind of system that the model is of"
        )
    return Parts(
        load_weights(vae, source, "vae", None),
        load_weights(text_encoder, source, "text_encoder", None),
        load_tokenizer(tokenizer, source),
        load_weights(transformer, source, "transformer", None),
    )


CAPTIONS = ("a red ball moves left over a plain wall", "the green square glides up", "a blue star, fast and slow")


def tiny_tokenizer(captions: Iterable[str] = CAPTIONS) -> Any:
    """A T5 tokenizer that knows the words of captions, and spells others."""
    from transformers import T5TokenizerFast

    words = sorted({f"▁{word}" for caption in captions for word in caption.split() if len(word) > 1})
    letters = ["▁", *map(chr, range(ord("!"), ord("~") + 1))]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0} | dict.fromkeys(words, -2.0) | dict.fromkeys(letters, -10.0)
    return T5TokenizerFast(vocab=list(scores.items()), extra_ids=0)


def check_text_width(source: str, text_encoder: Any, width: int) -> None:
    """Raises InputError where a text encoder's embeddings don't have the width that the transformer takes."""
    if text_encoder.config.d_model != width:
        raise InputError(
            f"the transformer of model {source!r} takes text of width {width}, its text encoder has "
            f"{text_encoder.config.d_model}; expected the same: take both from one model"
        )
