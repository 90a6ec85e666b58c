"""From cached examples to what the network and the loss take: noise, timesteps, dropped conditions, rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from contrastive_i2v.data.examples import Example
from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.randomness import draw, seeded
from contrastive_i2v.system import Condition, ImageEmbeds, System, split_noise
from contrastive_i2v.training.config import TimestepsConfig


@dataclass(frozen=True)
class Inputs:
    """One batch; all latents are normalised. G frames of a window are generated."""

    noisy_latents: Tensor  # [B, G, C, h, w]
    timesteps: Tensor  # [B], or [B, G] where every frame has its own
    clean_latents: Tensor  # [B, G, C, h, w]
    noise: Tensor  # [B, G, C, h, w]
    condition: Condition
    has_condition: Tensor  # bool [B]
    source_latents: Tensor  # [B, C, h, w], the last given frame, without noise
    groups: Tensor  # int64 [B]
    has_text: Tensor  # bool [B]
    captions: Tensor | None = None  # [B, E], where a loss needs them
    own_samples: Tensor | None = None  # [k, G, C, h, w], what the model made in place of the last k rows' truth

    @property
    def timesteps_by_frame(self) -> Tensor:
        """[B G], a generated frame each."""
        return self.timesteps.reshape(len(self.timesteps), -1).expand(-1, self.clean_latents.shape[1]).flatten()

    @property
    def whole(self) -> Tensor:
        """bool [B], nothing of the condition was dropped."""
        return self.has_condition & self.has_text


@dataclass(frozen=True)
class OwnConditions:
    """What of the model's own a batch is conditioned on; its last k rows are from rollouts, m <= k with own frames."""

    given: Tensor  # [m, n, C, h, w], the autoencoder's own latents, in place of the last rows' true given frames
    generated: Tensor  # [k, G, C, h, w], normalised
    errors: Tensor | None  # [B, C, h, w], normalised; added to every given frame but the anchor


@dataclass(frozen=True)
class TrueFrames:
    """A batch's frames, posterior modes."""

    given: Tensor  # [B, n, C, h, w], the autoencoder's own latents; the anchor first, the frame ahead last
    present: Tensor  # bool [B, n]
    generated: Tensor  # [B, G, C, h, w], normalised


@dataclass(frozen=True)
class LossRows:
    """The loss's view of a batch: a row a generated frame, or a row a clip."""

    noisy_latents: Tensor  # [rows, *latent]
    timesteps: Tensor  # [rows]
    clean_latents: Tensor  # [rows, *latent]
    noise: Tensor  # [rows, *latent]
    has_condition: Tensor  # bool [rows]
    banks: dict[str, Tensor]  # name -> [rows, *latent]
    groups: Tensor  # int64 [rows]


def make_inputs(
    batch: Example,
    system: System,
    *,
    schedule: NoiseSchedule,
    timesteps: TimestepsConfig,
    conditioning_dropout: float,
    condition_noise: float = 0.0,
    own: OwnConditions | None = None,
    captions: bool = False,
    generator: torch.Generator,
) -> Inputs:
    """Draw a batch's posterior sample, noise, timesteps and dropped conditions from `generator` (on the CPU).

    The generated frames are posterior samples, the given ones posterior modes, as InstructPix2Pix has it. With one
    uniform r an example: no text if r < 2p, no image if p <= r < 3p. Condition noise s adds u s e to the given
    latents, u uniform in [0, 1] an example and e normal: a rollout's own errors look like it. Rows with own conditions
    get none. The draws are the same with and without `own`. A system that drops absent frames is given any number of
    frames up to its window's, alike in the batch, as a video's first windows have fewer. In a system with
    `frame_timesteps` every frame has a timestep of its own, drawn alike, and the given ones are noised to theirs (Chen
    et al., Diffusion Forcing, arXiv 2407.01392, algorithm 1).
    """
    device, p, codec = batch.raw.device, conditioning_dropout, system.codec
    past = system.window.past
    if system.drops_absent and past > 1:
        past = int(torch.randint(1, past + 1, (), generator=generator))
    given_rows, generated_rows = _rows(system, batch, past)
    given = codec.sample(_pick(batch.raw, given_rows))  # [B, n, C, h, w]
    raw = _pick(batch.raw, generated_rows)
    if own is not None:
        true, end = given[len(given) - len(own.given) :], given.shape[1] - system.window.ahead
        rolled = torch.cat([own.given[:, :end], true[:, end:]], dim=1)  # a rollout knows no frame ahead
        given = torch.cat([given[: len(given) - len(rolled)], rolled])
    size, shape = len(raw), (*raw.shape[:2], codec.channels, *raw.shape[3:])  # [B, G, C, h, w]
    clean = codec.normalize(codec.sample(raw, send(draw(shape, generator), device)))
    every_noise = send(system.noise(shape, generator, given=given, sampling=False), device)
    given_noise, noise = split_noise(every_noise, shape[1])
    latent = (batch.raw.shape[1] - system.window.anchor - system.window.ahead, *shape[3:])
    drawn = schedule.sample_timesteps(
        size * (len(given_rows) + shape[1]) if system.frame_timesteps else size,
        generator,
        distribution=timesteps.distribution,
        mean=timesteps.logit_mean,
        std=timesteps.logit_std,
        shift=system.timestep_shift(latent) if timesteps.shift is None else timesteps.shift,
    )
    drawn = send(drawn, device)
    history = None
    if system.frame_timesteps:
        history, drawn = torch.split(drawn.view(size, -1), [len(given_rows), shape[1]], dim=1)  # [B, n], [B, G]
    r = send(torch.rand(size, generator=generator), device)
    no_text, no_image = r < 2 * p, (r >= p) & (r < 3 * p)
    newest = -1 - system.window.ahead
    source, level = codec.normalize(given[:, newest] if given_rows else torch.zeros_like(clean[:, 0])), None
    if own is not None and own.errors is not None:
        errors = own.errors[:, None].expand_as(given) / codec.scale
        given = torch.cat([given[:, : system.window.anchor], (given + errors)[:, system.window.anchor :]], dim=1)
    if condition_noise > 0:
        amount = condition_noise * torch.rand(size, 1, 1, 1, 1, generator=generator)
        amount[size if own is None else size - len(own.given) :] = 0
        given = given + send(amount * draw(given.shape, generator), device) / codec.scale
        level = send(amount.flatten(), device)
    present = _pick(batch.present, given_rows)
    if system.window.ahead:  # half of the examples are as keyframes, which know none
        known = present[:, -1:] & send(torch.rand(size, 1, generator=generator) < 0.5, device)
        present = torch.cat([present[:, :-1], known], dim=1)
    condition = system.condition(
        given, batch.text, present=present, fps=batch.fps, noise_level=level, noise=given_noise, image=batch.image
    )
    if history is not None:
        condition = system.noise_history(condition, history)
    return Inputs(
        noisy_latents=schedule.add_noise(clean, noise, drawn),
        timesteps=drawn,
        clean_latents=clean,
        noise=noise,
        condition=system.drop(condition, image=no_image, text=no_text),
        has_condition=~no_image,
        source_latents=source,
        groups=batch.group,
        has_text=~no_text,
        captions=system.caption_features(batch.text) if captions else None,
        own_samples=None if own is None else own.generated,
    )


def join(parts: Sequence[Inputs]) -> Inputs:
    """Batches as one, their rows in order; without own samples, which are of a batch's last rows."""

    def joined(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, dict):
            return {name: torch.cat([value[name] for value in values]) for name in first}
        return None if first is None else torch.cat(list(values))

    names = [item.name for item in fields(Inputs) if item.name != "own_samples"]
    return Inputs(**{name: joined([getattr(part, name) for part in parts]) for name in names})


def true_frames(batch: Example, system: System) -> TrueFrames:
    """What a batch's window gives and what it should generate, without anything random."""
    given, generated = _rows(system, batch)
    codec = system.codec
    return TrueFrames(
        given=codec.sample(_pick(batch.raw, given)),
        present=_pick(batch.present, given),
        generated=codec.normalize(codec.sample(_pick(batch.raw, generated))),
    )


def _rows(system: System, batch: Example, past: int | None = None) -> tuple[list[int], list[int]]:
    """Of an example's frames: those that the network is given, the anchor first and the frame ahead last, and those
    that it generates. A window has as many as the batch holds, and `past` given ones where they are said."""
    anchors, ahead = int(system.window.anchor), int(system.window.ahead)
    window = system.window if past is None else system.window.after(past)
    window = replace(window, length=batch.raw.shape[1] - anchors - ahead)
    given = [*range(anchors), *(anchors + place for place in window.given)]
    given += [batch.raw.shape[1] - 1] * ahead
    return given, [anchors + place for place in window.generated]


def _pick(frames: Tensor, rows: Sequence[int]) -> Tensor:
    """`frames[:, rows]`; indexing by a list would wait for the device."""
    return torch.stack([frames[:, row] for row in rows], dim=1) if rows else frames[:, :0]


def send(drawn: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it, which takes pinned memory."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)


def loss_rows(inputs: Inputs, rows: Literal["frame", "clip"]) -> LossRows:
    """The rows of the loss: G a window, or one. The source frame stands beside every generated one."""
    count = inputs.clean_latents.shape[1]  # G

    def of_frames(latents: Tensor) -> Tensor:
        """`[B, G, C, h, w]`"""
        return latents.flatten(0, 1) if rows == "frame" else latents

    def of_windows(values: Tensor) -> Tensor:
        """`[B]`"""
        return values.repeat_interleave(count) if rows == "frame" else values

    clean, source = of_frames(inputs.clean_latents), inputs.source_latents[:, None]
    return LossRows(
        noisy_latents=of_frames(inputs.noisy_latents),
        timesteps=inputs.timesteps_by_frame if rows == "frame" else inputs.timesteps,
        clean_latents=clean,
        noise=of_frames(inputs.noise),
        has_condition=of_windows(inputs.has_condition),
        banks={"target": clean, "input": of_frames(source.expand(-1, count, -1, -1, -1))},
        groups=of_windows(inputs.groups),
    )


@torch.no_grad()
def blank_inputs(system: System, clean: Tensor) -> tuple[Tensor, Condition]:
    """Noise in the shape of `clean [B, G, C, h, w]`, a window's generated frames, and the condition of black given
    frames and no prompt."""
    window = system.window
    given = clean.new_zeros(len(clean), window.anchor + len(window.given) + window.ahead, *clean.shape[2:])
    noise = system.noise(clean.shape, seeded("blank"), given=given, sampling=False).to(clean.device)
    given_noise, noise = split_noise(noise, clean.shape[1])
    text = {name: value.expand(len(clean), *value.shape[1:]) for name, value in system.encode_text([""]).items()}
    image = blank_image(system, len(clean), clean.device)
    return noise, system.condition(given, text, noise=given_noise, image=image)


@torch.no_grad()
def blank_image(system: System, count: int, device: torch.device) -> ImageEmbeds:
    """What a system that sees pixels makes of black given frames, `[count, *]` each; empty for others."""
    if not system.sees_pixels:
        return {}
    frames = 1 + (system.window.past - 1) * system.codec.temporal_downscale
    image = system.encode_image(torch.zeros(1, frames, 3, *system.size, device=device), system.window.length)
    return {name: value.expand(count, *value.shape[1:]).clone() for name, value in image.items()}
