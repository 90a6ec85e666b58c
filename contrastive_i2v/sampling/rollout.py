"""Still frames and prompts become video latents, window after window: what a window generates the next one is given.

Or keyframes first, every K-th frame each from the one before it, then the frames halfway between two that are there,
until all are. So a frame is fewer windows away from the still one, log2 K + N / K in place of N for frame N, and the
frames of a level are generated side by side ("Hierarchy-2" of Harvey et al., "Flexible Diffusion Modeling of Long
Videos", arXiv 2205.11495, with every level halving the distance).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.ops.guided_step import guided_step
from contrastive_i2v.randomness import frame_generator
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling.guidance import Guidance, guidance_by_step, guided_prediction
from contrastive_i2v.sampling.linear_steps import LinearSteps, linear_steps
from contrastive_i2v.system import Size, System, Text, Window, split_noise

ROWS_AT_ONCE = 8
"""Samples that are generated together, where keyframes leave several frames of one video to be generated at once."""


@torch.no_grad()
def rollout(
    system: System,
    first: Tensor,
    text: Text,
    *,
    frames: int,
    seeds: Sequence[int],
    sampler: Sampler | None = None,
    scheduler: Any = None,
    fps: float | None = None,
    layout: Tensor | None = None,
    pixels: Tensor | None = None,
    negative: Text | None = None,
    callback: Callable[[int, Tensor], object] | None = None,
) -> Tensor:
    """Generate `frames - 1` latent frames after the first, window after window.

    With an image codec no frame goes through pixels on the way. With a video codec a window's given latents are those
    of a run of frames that begins with it, as in training, so the video's last frames are decoded and encoded anew; the
    latents that are returned are one run.

    The noise of a window depends on the sample's seed and the window's first frame alone, and is drawn on the CPU. So a
    prompt gives the same video alone and within a batch (to rounding), and a longer rollout begins with a shorter one's
    frames, with keyframes as without.

    DDIM, Euler and flow-matching Euler (`linear_steps` says which) run guidance and update as one op, and never wait
    for the device; any other scheduler's `step` is called as it is.

    Args:
        system: the model.
        first: [B, C, h, w], the still frames, the autoencoder's own latents: `codec.sample(codec.encode(pixels))`. They
            stand in for the frames before a video's first, which the system is told.
        text: [B, *] each, from `system.encode_text`.
        frames: length of the video in latent frames, the first one included.
        seeds: B integers.
        sampler: steps and guidance; None = the system's own.
        scheduler: a diffusers scheduler in place of the system's own; copied anew for each window, so the caller's
            keeps its state. Those that draw noise are given one generator a sample (DPMSolverSDE takes none, and isn't
            reproducible).
        fps: frames a second; None = what the system was trained at.
        layout: [B, frames, C, h, w], normalised latents of a coarse video that the noise follows, for systems whose
            noise can (`System.noise`): a moved crop of the first frame makes a camera move. None = no such video.
        pixels: [B, 3, H, W] in [-1, 1], the still frames, for systems that see them; None = decoded from `first`.
        negative: [B, *] each, negative prompts as `system.encode_text` has them; None = "".
        callback: called with (how many frames after the first are finished, those of them that just were [B, g, C, h,
            w]) after each window, in order of time where there are no keyframes.

    Returns:
        [B, frames, C, h, w] float32 latents, normalised; frame 0 is the first.

    Raises:
        InputError: a count that isn't positive, texts or seeds that aren't B, a system whose windows don't follow each
            other, or a scheduler that needs more than a number of steps.
    """
    sample = _Windows(system, text, len(first), seeds, sampler, scheduler, fps, negative)
    _check_rollout(system, first, frames, layout)
    if sample.sampler.keyframe_stride > 1:
        if layout is not None:
            raise InputError("layout: the noise of keyframes follows none; expected None, or keyframe_stride=1")
        return _keyframes_first(sample, first.float(), frames, callback)
    codec, anchors = system.codec, int(system.window.anchor)
    own = [first.float()]  # the video so far, the autoencoder's own latents
    video = [codec.normalize(own[0])]
    while len(video) < frames:
        start = len(video)
        window = system.window.after(start) if system.drops_absent else system.window
        seen = None
        if system.sees_pixels and start == 1 and pixels is not None:
            seen = pixels[:, None]  # [B, F, 3, H, W]
        elif system.sees_pixels or (codec.temporal_downscale > 1 and start > 1):
            seen = _last_pixels(system, own, window.past)
        past = [own[max(place, 0)] for place in range(start - window.past, start)]
        if seen is not None and start > 1:
            past = list(codec.sample(codec.encode(seen)).float().to(first.device).unbind(dim=1))
        ahead = [past[-1]] * window.ahead  # stands in for what isn't there
        given = torch.stack([own[0]] * anchors + past + ahead, dim=1)  # [B, n, C, h, w]
        there = [place >= 0 for place in range(start - window.past, start)]
        present = torch.tensor([True] * anchors + there + [False] * len(ahead), device=first.device)
        coarse = None if layout is None else _stretch(layout, start - window.past, window.length)
        latents = sample(
            given, start, window=window, present=present.expand(len(first), -1), layout=coarse, pixels=seen
        )
        latents = latents[:, window.past if window.regenerates else 0 :][:, : frames - start]  # [B, g, C, h, w]
        for latent in latents.unbind(dim=1):
            video.append(latent)
            own.append(codec.denormalize(latent))
        if callback is not None:
            callback(len(video) - 1, latents)
    return torch.stack(video, dim=1)


@torch.no_grad()
def first_frames(
    system: System,
    text: Text,
    *,
    size: Size,
    seeds: Sequence[int],
    sampler: Sampler | None = None,
    negative: Text | None = None,
) -> Tensor:
    """Still frames from text alone, by the system's own image model.

    Args:
        system: one whose `still` is an image model.
        text: [B, *] each.
        size: height and width in pixels.
        seeds: B integers.
        sampler: None = the image model's own.
        negative: as for `rollout`.

    Returns:
        [B, C, h, w] float32, the autoencoder's own latents, as `rollout` takes its first frames.

    Raises:
        InputError: a system that makes no image from text.
    """
    image = system.still()
    if image is None:
        raise InputError(f"{system.config.kind} makes no image from text; expected an image to begin with")
    sample = _Windows(image, text, len(seeds), seeds, sampler, None, None, negative)
    codec = image.codec
    none = torch.zeros(len(seeds), 0, codec.channels, *(side // codec.downscale for side in size), device=image.device)
    return codec.denormalize(sample(none, 0)[:, 0])


@torch.no_grad()
def fill_in(
    system: System,
    given: Tensor,
    text: Text,
    *,
    seeds: Sequence[int],
    sampler: Sampler | None = None,
    callback: Callable[[int, Tensor], object] | None = None,
) -> Tensor:
    """Frames between keyframes, by a system whose windows hold given frames among generated ones.

    Keyframe k is frame gap (k + 1) of the result, so gap frames come before the first and after the last: 8 keyframes 4
    apart become 37 frames, 16 become 69. More keyframes than a window gives take several windows, each over the next
    ones (the last over the last ones). Between the last keyframe of a window and the first of the next, both windows
    have frames, and the result goes from one to the other:

        z = (1 - u) z_before + u z_after,  u from 0 at the one keyframe to 1 at the other

    Args:
        system: its given frames are evenly apart.
        given: [B, K, C, h, w], the keyframes, the autoencoder's own latents; K at least the window's.
        text: [B, *] each.
        seeds: B integers.
        sampler: None = the system's own.
        callback: called with (frames finished, their latents) after each window.

    Returns:
        [B, gap (K + 1) + 1, C, h, w] float32, normalised.

    Raises:
        InputError: a system of another window, or keyframes of another shape or too few.

    Source: Emu Video (arXiv 2311.10709), appendix A.
    """
    window, count = system.window, len(system.window.given)
    gap = window.given[0] if window.given else 0
    even = gap > 0 and window.given == tuple(gap * (k + 1) for k in range(count))
    if not (even and window.length == gap * (count + 1) + 1 and window.regenerates):
        raise InputError(
            f"the windows of {system.config.kind} give frames {window.given} of {window.length}; expected keyframes "
            "evenly apart, in windows that are generated whole, as an interpolation model has them"
        )
    if given.ndim != 5:
        raise InputError(f"given has shape {tuple(given.shape)}; expected [B, K, C, h, w]")
    total = given.shape[1]
    if total < count:
        raise InputError(f"keyframes: expected at least {count}, those of a window, got {total}")
    sample = _Windows(system, text, len(given), seeds, sampler, None, None)
    video = torch.zeros(len(given), 0, *given.shape[2:], device=given.device)
    for start in sorted({min(first, total - count) for first in range(0, total, count)}):
        latents = sample(given[:, start : start + count].float(), gap * start)
        begin = gap * start  # of the window; its first keyframe is gap frames later
        if begin:
            u = torch.linspace(0, 1, gap + 1, device=latents.device).view(-1, 1, 1, 1)
            blended = (1 - u) * video[:, begin : begin + gap + 1] + u * latents[:, : gap + 1]
            latents = torch.cat([blended, latents[:, gap + 1 :]], dim=1)
        video = torch.cat([video[:, :begin], latents], dim=1)
        if callback is not None:
            callback(video.shape[1], latents)
    return video


def _keyframes_first(
    sample: _Windows, first: Tensor, frames: int, callback: Callable[[int, Tensor], object] | None
) -> Tensor:
    """`rollout` where the sampler's keyframe_stride is above 1."""
    system, stride = sample.system, sample.sampler.keyframe_stride
    rate = system.fps if sample.fps is None else sample.fps
    system.check_fps(rate / stride)
    codec, window, rows = system.codec, system.window, len(first)
    own = {0: first}  # frames that are there, the autoencoder's own latents
    finished = 0

    def generate(places: Sequence[int], distance: int) -> None:
        """Frames whose neighbours are so far away, side by side."""
        nonlocal finished
        known = set(own)
        made: dict[int, Tensor] = {}
        at_once = max(1, ROWS_AT_ONCE // rows)
        for some in [places[number : number + at_once] for number in range(0, len(places), at_once)]:
            given, present = [], []
            for place in some:
                past = [place - distance * age for age in range(window.past, 0, -1)]
                seen = [0] * window.anchor + past + [place + distance]
                given.append(torch.stack([own.get(one, first) for one in seen], dim=1))  # [B, n, C, h, w]
                present.append(torch.tensor([one in known for one in seen], device=first.device).expand(rows, -1))
            fps = torch.full((len(some) * rows,), rate / distance, device=first.device)
            latents = sample(torch.cat(given), some, present=torch.cat(present), rates=fps)[:, 0]
            new = latents.view(len(some), rows, *latents.shape[1:])  # [places, B, C, h, w]
            made |= dict(zip(some, codec.denormalize(new), strict=True))
            shown = [number for number, place in enumerate(some) if place < frames]
            finished += len(shown)
            if callback is not None and shown:
                callback(finished, new[shown].transpose(0, 1))
        own.update(made)

    for place in range(stride, frames - 1 + stride, stride):  # the last one may lie beyond the video, for those before
        generate([place], stride)
    while stride := stride // 2:
        generate(range(stride, frames - 1 + stride, 2 * stride), stride)
    return torch.stack([codec.normalize(own[place]) for place in range(frames)], dim=1)


class RolledWindow(NamedTuple):
    """One window of `roll_windows`."""

    given: Tensor
    """[B, n, C, h, w], what it was conditioned on: the autoencoder's own latents."""
    generated: Tensor
    """[B, G, C, h, w], what the network made of it, normalised."""


@torch.no_grad()
def roll_windows(
    system: System,
    given: Tensor,
    text: Text,
    *,
    windows: int,
    seeds: Sequence[int],
    sampler: Sampler | None = None,
    present: Tensor | None = None,
    fps: Tensor | None = None,
) -> list[RolledWindow]:
    """Windows that follow each other from any given frames on: what training's conditions become in a rollout.

    `rollout` begins with a still frame, this with the given frames of a training window, say in the middle of a clip.

    Args:
        system: the model.
        given: [B, n, C, h, w], the first window's given frames, the anchor first: the autoencoder's own latents.
        text: [B, *] each.
        windows: how many.
        seeds: B integers.
        sampler: None = the system's own.
        present: bool [B, n], as for `System.condition`; None = all given frames are there.
        fps: [B] frames a second; None = what the system was trained at.

    Returns:
        A `RolledWindow` each, float32.

    Raises:
        InputError: several windows of a system whose windows can't follow each other, and as `rollout` does.
    """
    window, anchors = system.window, int(system.window.anchor)
    if system.sees_pixels:
        raise InputError(f"{system.config.kind} sees given frames' pixels, which these windows don't have")
    if windows > 1 and not window.rolls:
        raise InputError(f"windows={windows}: those of {system.config.kind} can't follow each other; expected 1")
    sample = _Windows(system, text, len(given), seeds, sampler, None, None)
    there = torch.ones_like(given[:, :, 0, 0, 0], dtype=torch.bool) if present is None else present
    if window.ahead:  # as in a rollout of one frame after the other
        there = torch.cat([there[:, :-1], torch.zeros_like(there[:, -1:])], dim=1)
    rolled = []
    for number in range(windows):
        start = window.past + number * (window.length - window.past)
        latents = sample(given, start, present=there, rates=fps)
        rolled.append(RolledWindow(given, latents))
        new = system.codec.denormalize(latents[:, window.past if window.regenerates else 0 :])
        end = anchors + window.past
        past = torch.cat([given[:, anchors:end], new], dim=1)[:, -window.past :]
        given = torch.cat([given[:, :anchors], past, given[:, end:]], dim=1)
        past_there = torch.cat([there[:, anchors:end], torch.ones_like(new[:, :, 0, 0, 0], dtype=torch.bool)], dim=1)
        there = torch.cat([there[:, :anchors], past_there[:, -window.past :], there[:, end:]], dim=1)
    return rolled


class _Windows:
    """Samples windows, one at a time: what all ways of sampling share. Raises InputError for what can't be sampled."""

    def __init__(
        self,
        system: System,
        text: Text,
        size: int,
        seeds: Sequence[int],
        sampler: Sampler | None,
        scheduler: Any,
        fps: float | None,
        negative: Text | None = None,
    ) -> None:
        self.negative = negative
        self.system, self.text, self.seeds, self.fps = system, text, seeds, fps
        self.sampler = sampler or system.sampler
        self.scheduler = system.scheduler if scheduler is None else scheduler
        _check(system, text, negative or {}, size, self.scheduler, self.sampler, seeds, fps)
        self.linear: dict[Sequence[int], LinearSteps | None] = {}

    def __call__(
        self,
        given: Tensor,
        start: int | Sequence[int],
        *,
        present: Tensor | None = None,
        layout: Tensor | None = None,
        rates: Tensor | None = None,
        window: Window | None = None,
        pixels: Tensor | None = None,
    ) -> Tensor:
        """The latents [B, G, C, h, w] that the network generates of the window whose first new frame is `start`; or of
        several windows side by side, all samples of the first one first. `rates [B]` are frames a second where they
        differ within the batch, `pixels [B, F, 3, H, W]` the given frames' for a system that sees them."""
        system, size, window = self.system, len(given), window or self.system.window
        count, latent = len(window.generated), (window.length, *given.shape[-2:])
        if self.fps is not None and rates is None:
            rates = torch.full((size,), self.fps, device=given.device)
        starts = [start] if isinstance(start, int) else start
        generators = [frame_generator(seed, one) for one in starts for seed in self.seeds]
        text = _repeat(self.text, len(starts))
        negative = self.negative and _repeat(self.negative, len(starts))
        shape = (size, count, *given.shape[2:])
        every_noise = system.noise(shape, generators, given=given, sampling=True, layout=layout).to(given.device)
        given_noise, noise = split_noise(every_noise, count)
        image = None if pixels is None or not system.sees_pixels else system.encode_image(pixels, window.length)
        condition = system.condition(given, text, present=present, fps=rates, noise=given_noise, image=image)
        total = self.scheduler.config.num_train_timesteps
        if latent not in self.linear:
            self.linear[latent] = linear_steps(
                self.scheduler,
                self.sampler.steps,
                self.sampler.scale,
                set_timesteps=lambda scheduler, steps: system.set_timesteps(scheduler, steps, latent),
            )
        if (linear := self.linear[latent]) is not None:
            shares = linear.timesteps / total
            guidance = guidance_by_step(system, condition, self.sampler, shares, negative)
            return sample_window(system.network, noise, guidance, linear)
        own_steps = copy.deepcopy(self.scheduler)
        system.set_timesteps(own_steps, self.sampler.steps, latent, device=given.device)
        shares = own_steps.timesteps.double() / total
        guidance = guidance_by_step(system, condition, self.sampler, shares, negative)
        scales = self.sampler.scale(shares).tolist()
        return sample_window_by_scheduler(system.network, noise, guidance, scales, own_steps, generators)


def sample_window(network: nn.Module, noise: Tensor, guidance: Sequence[Guidance], linear: LinearSteps) -> Tensor:
    """One window [B, G, C, h, w]: each step is a call of the network and one of `guided_step`; in float32."""
    timesteps = linear.timesteps.to(noise.device)
    noisy = torch.cat([noise * linear.noise_scale] * len(guidance[0].branches))  # [branches * B, G, C, h, w]
    copies = [*(len(one.branches) for one in guidance[1:]), 1]  # of the next step's input
    for timestep, update, one, count in zip(timesteps, linear.scales, guidance, copies, strict=True):
        predictions = network(noisy, timestep.expand(len(noisy)), **one.conditions)
        fractional = "history" in one.branches
        noisy = guided_step(
            noisy[: len(noise)], predictions, *update, fractional=fractional, copies=count, **one.scales
        )
    return noisy


def sample_window_by_scheduler(
    network: nn.Module,
    noise: Tensor,
    guidance: Sequence[Guidance],
    scales: Sequence[float],
    scheduler: Any,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """One window [B, G, C, h, w] by the scheduler's own steps over the guided prediction; in float32."""
    # flow matching schedulers neither scale the noise nor the model's input
    scale_input = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    stochastic = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": list(generators)} if stochastic else {}
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep, one, scale in zip(scheduler.timesteps, guidance, scales, strict=True):
        noisy, timesteps = scale_input(latents, timestep), timestep.expand(len(latents))
        prediction = guided_prediction(network, noisy, timesteps, one.conditions, one.branches, **one.scales)
        latents = scheduler.step(scale * prediction.float(), timestep, latents, **extra, return_dict=False)[0]
    return latents


def _repeat(text: Text, times: int) -> Text:
    return text if times == 1 else {name: torch.cat([value] * times) for name, value in text.items()}


def _last_pixels(system: System, own: Sequence[Tensor], count: int) -> Tensor:
    """`[B, F, 3, H, W]`, the frames at a video's end of which the codec makes `count` latents.

    `own` are the video's latents, of which no more than a window's are decoded.
    """
    codec = system.codec
    pixels = codec.decode(codec.normalize(torch.stack(list(own[-system.window.length :]), dim=1)))
    return pixels[:, -(1 + (count - 1) * codec.temporal_downscale) :]


def _stretch(video: Tensor, start: int, length: int) -> Tensor:
    """`length` frames of a video [B, F, *] from `start` on; its ends repeat."""
    places = torch.arange(start, start + length, device=video.device).clamp(0, video.shape[1] - 1)
    return video[:, places]


def _check_rollout(system: System, first: Tensor, frames: int, layout: Tensor | None) -> None:
    if not system.window.rolls:
        raise InputError(
            f"the windows of {system.config.kind} give frames {system.window.given} of {system.window.length}, so none "
            "can follow another; expected a system whose given frames come first"
        )
    if first.ndim != 4:
        raise InputError(f"first has shape {tuple(first.shape)}; expected [B, C, h, w]")
    if frames < 1:
        raise InputError(f"frames={frames}; expected at least 1, the first frame included")
    if layout is not None and layout.shape != (len(first), frames, *first.shape[1:]):
        expected = [len(first), frames, *first.shape[1:]]
        raise InputError(f"layout has shape {list(layout.shape)}; expected {expected}, a latent a frame")


def _check(
    system: System,
    text: Text,
    negative: Text,
    size: int,
    scheduler: Any,
    sampler: Sampler,
    seeds: Sequence[int],
    fps: float | None,
) -> None:
    train_steps = int(scheduler.config.num_train_timesteps)
    if not 1 <= sampler.steps <= train_steps:
        raise InputError(f"steps={sampler.steps}; expected between 1 and {train_steps}, the scheduler's timesteps")
    system.check_sampler(sampler)
    if len(seeds) != size:
        raise InputError(f"seeds has {len(seeds)} entries; expected one for each of the {size} latents")
    for name, value in [*text.items(), *negative.items()]:
        if len(value) != size:
            raise InputError(f"{name} has shape {tuple(value.shape)}; expected [{size}, *], one for each latent")
    if fps is not None:
        system.check_fps(fps)
