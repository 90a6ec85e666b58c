"""Train the tiny base's autoencoder and text encoder from scratch, on frames of the project's own clips.

Both stages run through `fit`: AdamW with a cosine schedule, every draw a function of (seed, step), checkpoints
from which an interrupted stage goes on by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel

from contrastive_i2v.data.examples import report_skipped
from contrastive_i2v.data.reading import probe_clip, read_clip
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.data.video import VideoError, resize_frames
from contrastive_i2v.models import tiny
from contrastive_i2v.training.checkpoint import (
    list_checkpoints,
    load_last_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)

StepLoss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]


def fit(
    module: nn.Module,
    loss: StepLoss,
    *,
    folder: Path,
    steps: int,
    learning_rate: float,
    seed: int,
    save_every: int = 250,
) -> None:
    """Minimise `loss(step, generator)` over `module`'s parameters; goes on from the last checkpoint in `folder`."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99))
    start = 0
    if list_checkpoints(folder):
        _, tensors, state = load_last_checkpoint(folder)
        module.load_state_dict(tensors["module"])
        unpack_optimizer(module, optimizer, tensors["optimizer"], state["groups"])
        start = state["step"]
    module.train()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=folder.name, unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        value, metrics = loss(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix({name: f"{number:.4f}" for name, number in metrics.items()})
        if (step + 1) % save_every == 0 or step + 1 == steps:
            packed, groups = pack_optimizer(module, optimizer)
            save_checkpoint(
                folder, step + 1, {"module": module.state_dict(), "optimizer": packed}, {"groups": groups}, keep=1
            )
    module.eval()


def load_frames(clips: Sequence[Clip], per_clip: int, step: int, size: int) -> tuple[Tensor, list[Clip]]:
    """`per_clip` frames of each clip, `step` native frames apart: float `[N, per_clip, 3, size, size]` in [-1, 1].

    Beside them the N clips: those whose file can't be decoded are named and left out. Raises NoClipLeft without any.
    """
    frames, kept, skipped = [], [], []
    for number, clip in enumerate(tqdm(clips, desc="frames", unit="clip")):
        try:
            last = probe_clip(clip).frames - 1
            first = number * 7 % max(1, last - (per_clip - 1) * step)
            indices = [min(first + i * step, last) for i in range(per_clip)]
            frames.append(resize_frames(read_clip(clip, indices), size))
            kept.append(clip)
        except VideoError as error:
            skipped.append(Skipped.because(clip.where, error))
    if not frames:
        raise NoClipLeft(skipped)
    if skipped:
        print(report_skipped(skipped))
    return torch.stack(frames), kept


def train_autoencoder(frames: Tensor, *, folder: Path, steps: int, batch_size: int, seed: int) -> Any:
    """Train the tiny AutoencoderKL on `frames [N, 3, H, W]`; sets `scaling_factor` to 1 / std of its latents.

    First half: encoder and decoder each learn their half of a linear code, the principal components of a latent
    pixel's patch, which is three times quicker than both finding a code together. Second half: they go on as one,

        L1(pixels) + MSE(pixels) + L1(pixel differences) / 2 + 1e-4 mean KL(posterior, N(0, I))

    where the third term keeps edges sharp and the last the latent space near unit scale. Steps see half-size crops,
    a quarter of the work, but for the last tenth.
    """
    torch.manual_seed(seed)
    vae = tiny.build_vae()
    side = frames.shape[-1]
    code = PatchComponents(frames, channels=vae.config.latent_channels, patch=4)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        images = frames[torch.randint(len(frames), (batch_size,), generator=generator)]
        if step < 0.9 * steps:
            top, left = (int(i) * 4 for i in torch.randint(side // 8 + 1, (2,), generator=generator))
            images = images[..., top : top + side // 2, left : left + side // 2]
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        apart = step < 0.5 * steps
        target = code(images)
        latents = target + 0.05 * noise if apart else posterior.mean + posterior.std * noise
        error = vae.decode(latents).sample - images
        pixel, square = error.abs().mean(), error.square().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        total = pixel + square + 0.5 * edges + 1e-4 * kl
        if apart:
            total = total + (posterior.mean - target).square().mean()
        return total, {"l1": pixel.item(), "kl": kl.item()}

    fit(vae, loss, folder=folder, steps=steps, learning_rate=1.5e-3, seed=seed)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(frames[:512], 32)])
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    return vae


def train_video_autoencoder(
    vae: Any, clips: Tensor, *, folder: Path, steps: int, batch_size: int, seed: int, crop: int = 32
) -> tuple[Tensor, Tensor]:
    """Train a causal video autoencoder in place on `clips [N, F, 3, H, W]`; the mean and standard deviation of its
    latents by channel, [C] each.

        L1(pixels) + MSE(pixels) + L1(pixel differences) / 2 + 1e-4 mean KL(posterior, N(0, I))

    Steps see crops, but for the last tenth.
    """
    side = clips.shape[-1]

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pixels = clips[torch.randint(len(clips), (batch_size,), generator=generator)].transpose(1, 2)
        if step < 0.9 * steps:
            top, left = (int(i) for i in torch.randint(side - crop + 1, (2,), generator=generator))
            pixels = pixels[..., top : top + crop, left : left + crop]
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        error = vae.decode(latents).sample - pixels
        pixel, square = error.abs().mean(), error.square().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return pixel + square + 0.5 * edges + 1e-4 * kl, {"l1": pixel.item(), "kl": kl.item()}

    fit(vae, loss, folder=folder, steps=steps, learning_rate=1.5e-3, seed=seed)
    with torch.no_grad():
        some = torch.split(clips[:128].transpose(1, 2), batch_size)
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in some]).transpose(0, 1).flatten(1)
    return latents.mean(1), latents.std(1)


class PatchComponents:
    """The linear code of `patch` x `patch` pixels: their first `channels` principal components, at unit variance."""

    def __init__(self, frames: Tensor, *, channels: int, patch: int) -> None:
        self.patch = patch
        patches = self._patches(frames[:1000]).flatten(0, 1)[::7]  # [n, 3 patch^2]
        self.mean = patches.mean(0)
        components = torch.linalg.svd(patches - self.mean, full_matrices=False)[2][:channels]
        self.basis = components.T / ((patches - self.mean) @ components.T).std(0)  # [3 patch^2, C]

    def __call__(self, images: Tensor) -> Tensor:
        """`[F, 3, H, W]` -> `[F, C, H / patch, W / patch]`."""
        codes: Tensor = (self._patches(images) - self.mean) @ self.basis  # [F, h w, C]
        return codes.transpose(1, 2).reshape(
            len(images), -1, images.shape[-2] // self.patch, images.shape[-1] // self.patch
        )

    def _patches(self, images: Tensor) -> Tensor:
        return F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)


def train_text_encoder(
    pairs: Tensor, captions: Sequence[str], *, folder: Path, steps: int, batch_size: int, seed: int
) -> tuple[Any, Any]:
    """Train the tiny CLIP text encoder against two frames of each clip, `pairs [N, 2, 3, H, W]`.

    The objective is CLIP's (arXiv 2103.00020), the image tower seeing both frames so that motion counts; equal
    captions in a batch share the target. Returns (tokenizer, CLIPTextModel); the image tower is dropped.
    """
    torch.manual_seed(seed)
    tokenizer = tiny.build_tokenizer(captions)
    tokens = tokenizer(
        list(captions), padding="max_length", max_length=tiny.PROMPT_LENGTH, truncation=True, return_tensors="pt"
    )
    names = {caption: index for index, caption in enumerate(dict.fromkeys(captions))}
    labels = torch.tensor([names[caption] for caption in captions])
    vision: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "projection_dim": tiny.PROMPT_FEATURES}
    vision |= {"num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"num_channels": 6, "image_size": pairs.shape[-1], "patch_size": 8}
    clip = CLIPModel(
        CLIPConfig(
            text_config=tiny.text_config(tokenizer).to_dict(),
            vision_config=vision,
            projection_dim=tiny.PROMPT_FEATURES,
        )
    )

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randperm(len(pairs), generator=generator)[:batch_size]
        logits = clip(
            input_ids=tokens.input_ids[rows],
            attention_mask=tokens.attention_mask[rows],
            pixel_values=pairs[rows].flatten(1, 2),
        ).logits_per_text
        same = (labels[rows][:, None] == labels[rows]).float()
        target = same / same.sum(1, keepdim=True)
        value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        hit = same[torch.arange(len(rows)), logits.argmax(1)].mean()
        return value, {"loss": value.item(), "retrieval": hit.item()}

    fit(clip, loss, folder=folder, steps=steps, learning_rate=2e-3, seed=seed)
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict(), strict=False)
    return tokenizer, text_encoder.eval()
