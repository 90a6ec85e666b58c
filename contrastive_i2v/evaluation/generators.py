"""Where evaluated videos come from: rollouts of a model, a diffusers pipeline, finished files, and two baselines.

A `Method` says what its videos are made with (`identity`: another identity, other videos) and loads only when there
is something to make. A generator maps a `Batch` of clips to uint8 videos `[B, F, 3, H, W]`, frame 0 the given one.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.data.frames import FramesConfig, skip_reason, valid_frames
from contrastive_i2v.data.reading import probe_clip, read_clip, stamp_clip
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoError, resize_frames, to_uint8
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.evaluation.alignment import normalised
from contrastive_i2v.evaluation.extractors.base import TextExtractor
from contrastive_i2v.evaluation.videos import (
    ReferenceClip,
    ReferenceSet,
    match_videos,
    read_finished_frames,
    read_true_frames,
)
from contrastive_i2v.files import digest, file_hash, parse_json
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout
from contrastive_i2v.system import System

MAX_NAME = 200
"""Bytes of a method's name; file systems allow 255 for a name."""
Kind = Literal["checkpoint", "pipeline", "videos", "first-frame", "retrieval"]


@dataclass(frozen=True)
class Batch:
    """Clips to answer."""

    clips: Sequence[ReferenceClip]
    read: Callable[[ReferenceClip], Tensor]
    """A clip's true video, uint8 `[F, 3, H, W]`; only its first frame is a generator's to see."""
    frames: int
    """F, the given one included."""
    seed: int
    report: Callable[[str], None] = lambda text: None
    """Called with a few words on how far it is, where a batch takes long."""

    @cached_property
    def first(self) -> Tensor:
        """The given frames, uint8 `[B, 3, H, W]`."""
        return torch.stack([self.read(clip)[0] for clip in self.clips])

    @property
    def prompts(self) -> list[str]:
        return [clip.caption for clip in self.clips]

    @property
    def seeds(self) -> list[int]:
        """One a clip, a function of `seed` and the clip's name: the same for every method and any batching."""
        return [int(hashlib.sha256(f"{self.seed} {c.name}".encode()).hexdigest()[:8], 16) for c in self.clips]


Generator: TypeAlias = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Method:
    """One method that is evaluated."""

    name: str
    kind: Kind
    identity: Mapping[str, str]
    """Whatever decides the videos but the clip and the seed: weights, sampler settings, folders."""
    load: Callable[[], Generator]
    seeds: tuple[int, ...] = ()
    """Sampling seeds; none where nothing is drawn."""
    about: Mapping[str, str] = field(default_factory=dict)
    """Provenance that leaves the videos as they are."""
    stamp: Callable[[ReferenceClip], str] = lambda clip: ""
    """What else a clip's video depends on: a finished file's bytes."""

    def __post_init__(self) -> None:
        name = self.name  # folders of the output are called this
        if name in ("", ".", "..") or re.search(r"[/\\:\0-\x1f]", name) or len(os.fsencode(name)) > MAX_NAME:
            shown = f"{name[:60]}..." if len(name) > 60 else name
            raise InputError(
                f"method name {shown!r}: expected a plain folder name of at most {MAX_NAME} bytes without '/', '\\' or "
                "':', and not '.' or '..'; give another as NAME=SPEC"
            )


def roll_out(system: System, sampler: Sampler) -> Generator:
    """What a system makes of the given frames (`sampling.rollout`); the given frame is decoded too, so that
    frame 0 differs from the true one by what the autoencoder loses."""

    def generate(batch: Batch) -> Tensor:
        codec = system.codec
        pixels = batch.first.float() / 127.5 - 1
        frames = -(-(batch.frames - 1) // codec.temporal_downscale) + 1  # latent ones
        latents = rollout(
            system,
            codec.sample(codec.encode(pixels[:, None]))[:, 0],
            system.encode_text(batch.prompts),
            frames=frames,
            sampler=sampler,
            seeds=batch.seeds,
            pixels=pixels,
            callback=lambda frame, z: batch.report(f"frame {frame + 1}/{frames}"),
        )  # [B, f, C, h, w]
        videos = codec.decode(latents)[:, : batch.frames]
        for clip, video in zip(batch.clips, videos, strict=True):
            if not torch.isfinite(video).all():
                raise InputError(
                    f"{clip.name}: the model's frames hold NaN or infinity; check its weights, or sample in float32"
                )
        return to_uint8(videos).cpu()

    return generate


def call_pipeline(pipeline: Any, *, name: str, arguments: Mapping[str, Any] | None = None) -> Generator:
    """A diffusers image-to-video pipeline: an object that is called with `image`, and with `prompt`, `num_frames`,
    `height`, `width` and `generator` where its signature has them, and returns an object with `.frames`.

    Clips are made one at a time. The first F frames are taken; frames of another size are cropped and resized.

    Raises:
        InputError: a pipeline without `image`, one that doesn't return videos, one that fails, or too few frames.
    """
    accepted, kind = inspect.signature(pipeline.__call__).parameters, type(pipeline).__name__
    supported = "supported are pipelines that take image (and prompt) and return .frames, as StableVideoDiffusion does"
    if "image" not in accepted:
        raise InputError(f"{name}: {kind} takes no image; {supported}")
    if unknown := sorted(set(arguments or {}) - set(accepted)):
        raise InputError(f"{name}: {kind} takes no {', '.join(unknown)}; check --pipeline-arguments")

    def generate(batch: Batch) -> Tensor:
        from PIL import Image

        height, width = batch.first.shape[-2:]
        videos = []
        for number, (clip, first, seed) in enumerate(zip(batch.clips, batch.first, batch.seeds, strict=True), 1):
            batch.report(f"clip {number}/{len(batch.clips)}")
            given = {
                "prompt": clip.caption,
                "num_frames": batch.frames,
                "height": height,
                "width": width,
                "generator": torch.Generator().manual_seed(seed),
                "output_type": "np",
            }
            given = {key: value for key, value in given.items() if key in accepted} | dict(arguments or {})
            image = Image.fromarray(first.permute(1, 2, 0).contiguous().numpy())
            try:
                with torch.no_grad():
                    output = pipeline(image=image, **given)
            except Exception as error:  # pipelines raise whatever their parts do
                raise InputError(
                    f"{name}: {kind} failed on {clip.name} at {width}x{height}, {batch.frames} frames: "
                    f"{one_line(error)}; {supported}"
                ) from error
            if not hasattr(output, "frames"):
                raise InputError(f"{name}: {kind} returns no .frames; {supported}")
            pixels = _float_video(output.frames)
            if not torch.isfinite(pixels).all():
                raise InputError(f"{clip.name}: {kind}'s frames hold NaN or infinity; check its weights")
            video = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
            if len(video) < batch.frames:
                raise InputError(
                    f"{name}: {kind} returned {len(video)} frames; expected at least {batch.frames}: give --frames "
                    f"{len(video)}"
                )
            videos.append(to_uint8(resize_frames(video[: batch.frames], (height, width))))
        return torch.stack(videos)

    return generate


def true_videos(reference: ReferenceSet) -> Method:
    """The true videos themselves, which the metrics of generated ones are read beside."""

    def generate(batch: Batch) -> Tensor:
        return torch.stack([read_true_frames(clip, reference.size) for clip in batch.clips])

    return Method("truth", "videos", {"videos": "true"}, lambda: generate, about={"folder": str(reference.folder)})


def first_frame() -> Method:
    """The baseline that repeats the given frame: perfectly consistent, and nothing moves."""

    def generate(batch: Batch) -> Tensor:
        return batch.first[:, None].expand(-1, batch.frames, -1, -1, -1)

    return Method("first-frame", "first-frame", {"repeats": "the given frame"}, lambda: generate)


def retrieval(train: Path, text: TextExtractor, reference: ReferenceSet) -> Method:
    """The baseline that answers with the training clip whose caption is nearest to the prompt: real motion of
    something else (the retrieval baseline shown beside Emu Video).

        answer[n] = argmax over training clips of cos(text(caption), text(prompt[n]))

    Clips too short for F frames are passed over, and so are files that are evaluated themselves; files that can't be
    decoded are, too, and named.
    """
    clips = read(train).clips
    tested = {clip.clip.where.resolve() for clip in reference.clips}
    clips = [clip for clip in clips if clip.where.resolve() not in tested]
    if not clips:
        raise InputError(f"{train}: every clip is one of those evaluated; expected other clips to retrieve from")
    identity = {
        "train_data": digest([[c.where.name, stamp_clip(c)[1], c.caption, c.start, c.end] for c in clips]),
        "text": f"{text.about.name}, {text.about.weights}",
    }

    def load() -> Generator:
        captions = sorted({clip.caption for clip in clips})
        features = normalised(torch.cat([text(captions[i : i + 256]) for i in range(0, len(captions), 256)]))

        def generate(batch: Batch) -> Tensor:
            similarity = normalised(text(batch.prompts)) @ features.T  # [B, captions]
            order = similarity.argsort(dim=1, descending=True, stable=True)
            return torch.stack([_nearest([captions[i] for i in row.tolist()]) for row in order])

        return generate

    def _nearest(captions: Sequence[str]) -> Tensor:
        config = FramesConfig(frame_rate=reference.frame_rate, max_seconds=float("inf"))
        for caption in captions:
            for clip in [clip for clip in clips if clip.caption == caption]:
                try:
                    video = _read_clip(clip, config, reference)
                except VideoError as error:
                    clips.remove(clip)
                    tqdm.write(f"left out of the retrieval: {error}")
                    continue
                if video is not None:
                    return video
        raise InputError(
            f"{train}: none of its clips holds {reference.frames} frames at {reference.frame_rate:g} a second; take "
            "fewer --frames"
        )

    return Method("retrieval", "retrieval", identity, load, about={"train_data": str(train)})


def finished_videos(name: str, folder: Path, reference: ReferenceSet) -> tuple[Method, list[Path]]:
    """A folder of finished videos, matched with the clips by `match_videos`; and the videos that answer no clip."""
    found, extra = match_videos(folder, reference.clips)

    def generate(batch: Batch) -> Tensor:
        return torch.stack([read_finished_frames(found[c.name], c, reference.size) for c in batch.clips])

    method = Method(
        name,
        "videos",
        {"videos": "read from files"},
        lambda: generate,
        about={"folder": str(folder)},
        stamp=lambda clip: file_hash(found[clip.name]),
    )
    return method, extra


def parse_arguments(text: str) -> dict[str, Any]:
    """A JSON object of arguments for a pipeline; "" is none. Raises InputError."""
    try:
        values = parse_json(text or "{}")
    except ValueError as error:
        raise InputError(f"pipeline-arguments: {text!r} is not JSON ({error}); write '{{\"fps\": 7}}'") from error
    if not isinstance(values, dict):
        raise InputError(f"pipeline-arguments: expected a JSON object such as '{{\"fps\": 7}}', got {text!r}")
    return values


def _read_clip(clip: Clip, config: FramesConfig, reference: ReferenceSet) -> Tensor | None:
    info = probe_clip(clip)
    if skip_reason(info, clip, config, least=reference.frames):
        return None
    indices = valid_frames(info, clip, config)[: reference.frames]
    return to_uint8(resize_frames(read_clip(clip, indices), reference.size))


def _float_video(frames: Any) -> Tensor:
    """A pipeline's frames, `[1, F, H, W, 3]` arrays in [0, 1] or lists of images, as `[F, 3, H, W]` in [0, 1]."""
    video = frames[0]
    if isinstance(video, Tensor):  # [F, 3, H, W]
        return video.float().cpu()
    pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in video]))  # [F, H, W, 3]
    scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    return scaled.permute(0, 3, 1, 2).contiguous()
