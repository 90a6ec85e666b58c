"""Encode once, cached on disk: clips become pairs of latents with their prompt's embeddings.

One safetensors file a clip, `cache_dir/<encoder key>/<clip key>.safetensors`, holds the native indices of
the encoded frames, their moments and the prompt's embeddings, in the dtype the encoder gave them. The encoder
key covers the encoder's fingerprint, the resolution and the preprocessing; the clip key covers the file's
path, size and time, the caption and the bounds. So nothing stale is ever read: what changed has another key.
A file appears whole or not at all (so several processes may share a cache), an interrupted run goes on where
it stopped, and a pair that needs other frames of a cached clip encodes only those.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from contrastive_i2v.data.frames import FramePairConfig, clip_rng, sample_pairs, skip_reason, valid_frames
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.data.video import VideoError, VideoInfo, probe, read_frames, resize_frames
from contrastive_i2v.errors import InputError

PREPROCESSING = 1
"""Part of every cache key: raise it when the way from a file to the encoder's input changes."""
FRAMES_AT_ONCE = 16
"""Frames decoded and encoded together."""


class Encoder(Protocol):
    """What turns pixels and prompts into latents; it moves its inputs to its own device.

    `fingerprint` changes whenever the results would: a hash of the weights.
    """

    @property
    def fingerprint(self) -> str: ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """`[F, 3, H, W]` in [-1, 1] -> moments (mean, log variance) `[F, 2C, h, w]`."""

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """N prompts -> embeddings `[N, L, E]`."""


@dataclass(frozen=True, eq=False)
class LatentPair:
    """One training pair, or a batch of them (a leading B everywhere)."""

    source_moments: Tensor
    """Mean and log variance of the source frame, unscaled: `[2C, h, w]`."""
    target_moments: Tensor
    """The same of the target frame: `[2C, h, w]`."""
    prompt_embeds: Tensor
    """`[L, E]`."""
    group: Tensor
    """int64 `[]`: the video the pair is from. Pairs of one group are no negatives of each other."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> LatentPair:
        return LatentPair(*(t.to(device, non_blocking=non_blocking) for t in self._tensors()))

    def pin_memory(self) -> LatentPair:
        """What a DataLoader with `pin_memory=True` calls."""
        return LatentPair(*(t.pin_memory() for t in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def collate(pairs: Sequence[LatentPair]) -> LatentPair:
    """Stack pairs into a batch: `DataLoader(dataset, collate_fn=collate)`."""
    return LatentPair(*(torch.stack(tensors) for tensors in zip(*(p._tensors() for p in pairs), strict=True)))


class PairIndex(NamedTuple):
    """Where a pair is from: `dataset.clips[clip]` and native frame indices."""

    clip: int
    source: int
    target: int


class LatentPairDataset(Dataset[LatentPair]):
    """Pairs read from the cache as they are asked for, as float32.

    Nothing is held in memory: the files are small, mapped, and kept by the system's page cache, so the data
    set may be larger than the memory and goes to DataLoader workers as it is.
    """

    def __init__(self, clips: Sequence[Clip], files: Sequence[Path], pairs: Sequence[PairIndex]) -> None:
        self.clips = list(clips)
        """The clips that gave pairs."""
        self.files = list(files)
        """The cache file of each clip."""
        self.pairs = list(pairs)
        videos: dict[Path, int] = {}
        self._groups = [videos.setdefault(clip.path, len(videos)) for clip in clips]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> LatentPair:
        clip, source, target = self.pairs[index]
        cached = _load(self.files[clip], [source, target])
        if cached is None:
            raise InputError(
                f"{self.files[clip]}: this cached latent is gone or damaged since the run began; "
                f"start again to encode it anew"
            )
        return LatentPair(
            source_moments=cached.moments[0].float(),
            target_moments=cached.moments[1].float(),
            prompt_embeds=cached.prompt_embeds.to(torch.float32, copy=True),  # off the mapped file
            group=torch.tensor(self._groups[clip]),
        )


def encode_clips(
    clips: Sequence[Clip],
    encoder: Encoder,
    *,
    cache_dir: str | Path,
    resolution: int,
    pairs: FramePairConfig,
    seed: int,
    progress: bool = True,
) -> tuple[LatentPairDataset, list[Skipped]]:
    """Draw the pairs of every clip and encode the frames they need, but for those the cache has.

    Returns the data set, in the clips' order, and the clips left out (a file that can't be decoded, a clip
    too long or too short) with the reasons. The pairs depend on `seed` and the clip alone, not on its folder
    or its neighbours. `resolution` is the side of the square the encoder sees, in pixels.

    Raises InputError when no clip is left, when `cache_dir` can't be written (what is encoded stays), and
    when the encoder gives values that aren't finite.
    """
    if not clips:
        raise InputError("clips: expected at least one clip, got none")
    if resolution < 1:
        raise InputError(f"resolution: expected pixels >= 1, got {resolution}")
    key = _digest(encoder.fingerprint, resolution, PREPROCESSING)
    folder = Path(cache_dir).expanduser() / f"{resolution}px-{key}"
    kept: list[Clip] = []
    files: list[Path] = []
    indices: list[PairIndex] = []
    skipped: list[Skipped] = []
    for clip in tqdm(clips, desc="encoding", unit="clip", mininterval=0.5, disable=not progress):
        try:
            file = folder / f"{_clip_key(clip)}.safetensors"
            drawn = _encode_clip(clip, encoder, file, resolution, pairs, seed)
        except VideoError as error:
            skipped.append(Skipped(clip.path, str(error).removeprefix(f"{clip.path}: ")))
            continue
        if isinstance(drawn, Skipped):
            skipped.append(drawn)
            continue
        indices += [PairIndex(len(kept), source, target) for source, target in drawn]
        kept.append(clip)
        files.append(file)
    if not kept:
        reasons = [f"{s.path}: {s.reason}" for s in skipped[:5]]
        reasons += [f"and {len(skipped) - 5} more"] * (len(skipped) > 5)
        raise InputError(f"none of the {len(skipped)} clips can be used: {'; '.join(reasons)}")
    return LatentPairDataset(kept, files, indices), skipped


def report_skipped(skipped: Sequence[Skipped], *, show: int = 10) -> str:
    """What was left out and why, a line each, the first `show`; "" when nothing was."""
    if not skipped:
        return ""
    lines = [f"left out {len(skipped)} clip{'s' if len(skipped) > 1 else ''}:"]
    lines += [f"  {s.path}: {s.reason}" for s in skipped[:show]]
    if len(skipped) > show:
        lines.append(f"  and {len(skipped) - show} more")
    return "\n".join(lines)


def encode_clip_frames(clip: Clip, encoder: Encoder, resolution: int, frames: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Native frames of a clip as the training sees them, past the cache: for previews and evaluation.

    Returns pixels `[F, 3, resolution, resolution]` in [-1, 1] and moments `[F, 2C, h, w]`, float32, on the
    CPU. Raises VideoError naming the file, InputError when the encoder's values aren't finite.
    """
    batches = _pixel_batches(clip, frames, resolution)
    return torch.cat(batches), torch.cat([_moments(encoder, pixels, clip) for pixels in batches]).float()


@dataclass(frozen=True)
class _Cached:
    """One cache file: frames `[F]` ascending, moments `[F, 2C, h, w]`, prompt_embeds `[L, E]`, and the
    video's header, so that a full cache opens no video."""

    frames: list[int]
    moments: Tensor
    prompt_embeds: Tensor
    info: VideoInfo


def _encode_clip(
    clip: Clip, encoder: Encoder, file: Path, resolution: int, config: FramePairConfig, seed: int
) -> list[tuple[int, int]] | Skipped:
    """The clip's pairs, their frames in the cache; or why it gives none."""
    cached = _load(file)
    header = cached.info if cached else probe(clip.path)
    for info in (header, replace(header, frames=header.frames - 1)):
        if reason := skip_reason(info, clip, config):
            return Skipped(clip.path, reason)
        drawn = sample_pairs(valid_frames(info, clip, config), config, clip_rng(clip, seed))
        needed = {frame for pair in drawn for frame in pair}
        missing = sorted(needed.difference(cached.frames if cached else ()))
        if not missing:
            return drawn
        try:
            batches = _pixel_batches(clip, missing, resolution)
            break
        except VideoError:
            if info is not header or missing[-1] != header.frames - 1:
                raise  # else the container may overstate its length by one: draw again without that frame

    moments = torch.cat([_moments(encoder, pixels, clip) for pixels in batches])
    prompt_embeds = cached.prompt_embeds if cached else _prompt_embeds(encoder, clip)
    new = _Cached(missing, moments, prompt_embeds, info)
    _store(file, _merge(_load(file), new), clip)  # loaded anew: another process may have added frames
    return drawn


def _pixel_batches(clip: Clip, frames: Sequence[int], resolution: int) -> list[Tensor]:
    """Native frames in batches of at most FRAMES_AT_ONCE, `[f, 3, resolution, resolution]` in [-1, 1]."""
    starts = range(0, len(frames), FRAMES_AT_ONCE)
    return [resize_frames(read_frames(clip.path, frames[i : i + FRAMES_AT_ONCE]), resolution) for i in starts]


@torch.no_grad()
def _moments(encoder: Encoder, pixels: Tensor, clip: Clip) -> Tensor:
    moments = encoder.encode_images(pixels).detach().cpu()
    if moments.dim() != 4 or len(moments) != len(pixels):
        raise ValueError(
            f"encode_images: expected moments [{len(pixels)}, 2C, h, w] of pixels {tuple(pixels.shape)}, "
            f"got {tuple(moments.shape)}"
        )
    _require_finite(moments, "the encoder's latents", clip)
    return moments


@torch.no_grad()
def _prompt_embeds(encoder: Encoder, clip: Clip) -> Tensor:
    embeds = encoder.encode_prompts([clip.caption]).detach().cpu()
    if embeds.dim() != 3 or len(embeds) != 1:
        raise ValueError(f"encode_prompts: expected [1, L, E] of one prompt, got {tuple(embeds.shape)}")
    _require_finite(embeds, f"the embeddings of {clip.caption!r}", clip)
    return embeds[0]


def _require_finite(values: Tensor, what: str, clip: Clip) -> None:
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{clip.path}: {what} hold NaN or infinity in {values.dtype}; nothing of it was cached. "
            f"Encode in float32 (a half-precision VAE overflows), or check the weights"
        )


def _merge(old: _Cached | None, new: _Cached) -> _Cached:
    """Both files' frames; one that both have is taken from `new`."""
    if old is None:
        return new
    rows = {frame: row for one in (old, new) for frame, row in zip(one.frames, one.moments, strict=True)}
    frames = sorted(rows)
    dtype = torch.promote_types(old.moments.dtype, new.moments.dtype)
    return replace(new, frames=frames, moments=torch.stack([rows[f].to(dtype) for f in frames]))


def _load(file: Path, frames: Sequence[int] | None = None) -> _Cached | None:
    """A cache file's `frames`, in that order (None = all); None where it is absent, damaged or lacks one."""
    try:
        with safe_open(file, framework="pt") as handle:
            stored = handle.get_tensor("frames").tolist()
            info = VideoInfo(**json.loads(handle.metadata()["clip"])["info"])
            rows = list(range(len(stored))) if frames is None else [stored.index(frame) for frame in frames]
            moments = handle.get_slice("moments")
            if len(stored) != moments.get_shape()[0]:
                return None
            picked = torch.stack([moments[row] for row in rows])
            embeds = handle.get_tensor("prompt_embeds")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, IndexError):
        return None
    return _Cached(list(stored) if frames is None else list(frames), picked, embeds, info)


def _store(file: Path, cached: _Cached, clip: Clip) -> None:
    """Write a cache file whole, or nothing."""
    tensors = {
        "frames": torch.tensor(cached.frames),
        "moments": cached.moments.contiguous(),
        "prompt_embeds": cached.prompt_embeds.contiguous(),
    }
    about = {"path": str(clip.path), "caption": clip.caption, "start": clip.start, "end": clip.end}
    header = {"clip": json.dumps({**about, "info": asdict(cached.info)})}
    part = file.with_name(f".{file.stem}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(save(tensors, header))
        part.replace(file)
    except OSError as error:
        raise InputError(
            f"cache_dir {file.parent.parent}: can't write the latents of {clip.path.name} "
            f"({error.strerror or error}). What is encoded so far stays: free some space on that disk, or "
            f"give another cache_dir, and run again"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _clip_key(clip: Clip) -> str:
    try:
        stat = clip.path.stat()
    except OSError as error:
        raise VideoError(f"{clip.path}: can't be read ({error.strerror})") from error
    path = os.path.abspath(clip.path)
    return _digest(path, stat.st_size, stat.st_mtime_ns, clip.caption, clip.start, clip.end)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
