"""The latent cache on disk: one safetensors file a clip, `cache_dir/<encoder key>/<clip key>.safetensors`.

A file holds the clip's text and, frame by frame, what the codec made of it, so that windows of every kind share it.
The encoder key covers the system's fingerprint, the size and the preprocessing; the clip key covers the file's path,
size and time, the caption and the bounds. So nothing stale is ever read: what changed has another key. A file appears
whole or not at all, and several processes may share a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from contrastive_i2v.data.reading import stamp_clip
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoInfo
from contrastive_i2v.errors import InputError
from contrastive_i2v.files import digest, write_whole
from contrastive_i2v.system import Size, Text

PREPROCESSING = 1
"""Part of every cache key: raise it when the way from a file to the encoder's input changes."""
ROWS, RAW = "frames", "moments"
"""Names of the tensors in a file that are no text."""


@dataclass(frozen=True)
class CachedClip:
    """One cache file."""

    rows: list[int]
    """See `row_keys`."""
    raw: Tensor
    """What the codec encoded, `[rows, R, h, w]`."""
    text: Text
    """One prompt's tensors, `[*]` each."""
    info: VideoInfo
    """The video's header, so that a full cache opens no video."""


def row_keys(frames: Sequence[int], temporal_downscale: int) -> list[int]:
    """The key of each latent frame that native frames are encoded to: the frame itself for an image codec, else a hash
    of the frames that the latent depends on, those up to its own."""
    if temporal_downscale == 1:
        return list(frames)
    ends = range(1, len(frames) + 1, temporal_downscale)
    hashes = (hashlib.blake2b(json.dumps(list(frames[:end])).encode(), digest_size=8).digest() for end in ends)
    return [int.from_bytes(one, "big") >> 1 for one in hashes]


def cache_folder(cache_dir: Path, fingerprint: str, size: Size) -> Path:
    """Where clips of this encoder and size are kept."""
    height, width = size
    key = height if height == width else [height, width]
    name = f"{height}px" if height == width else f"{height}x{width}px"
    return cache_dir.expanduser() / f"{name}-{digest([fingerprint, key, PREPROCESSING], 32)}"


def clip_file(folder: Path, clip: Clip) -> Path:
    """The cache file of a clip. Raises VideoError where the video can't be read."""
    key = digest([*stamp_clip(clip), clip.caption, clip.start, clip.end], 32)
    return folder / f"{key}.safetensors"


def load_clip(file: Path, rows: Sequence[int] | None = None) -> CachedClip | None:
    """A cache file's `rows`, in that order (None = all); None where it is absent, lacks one, or holds anything that
    isn't what was written."""
    try:
        with safe_open(file, framework="pt") as handle:
            header = json.loads(handle.metadata()["clip"])
            sums = header.pop("sums")
            if sums["clip"] != digest(header):
                return None
            stored, info = handle.get_tensor(ROWS).tolist(), VideoInfo(**header["info"])
            places = list(range(len(stored))) if rows is None else [stored.index(row) for row in rows]
            raw = handle.get_slice(RAW)
            if len(stored) != raw.get_shape()[0]:
                return None
            picked = torch.stack([raw[place] for place in places])
            text = {name: handle.get_tensor(name) for name in handle.keys() if name not in (ROWS, RAW)}  # noqa: SIM118
            if text.keys() != sums["text"].keys() or any(sums["text"][name] != _sum(text[name]) for name in text):
                return None
            kept = stored if rows is None else rows
            if any(sums["rows"][str(row)] != _sum(one) for row, one in zip(kept, picked, strict=True)):
                return None
    except Exception:  # what isn't there, and damage, which readers have many errors for
        return None
    return CachedClip(list(kept), picked, text, info)


def store_clip(file: Path, new: CachedClip, clip: Clip) -> None:
    """Write a cache file whole, or nothing; rows that it holds already stay.

    Raises InputError naming the cache when the disk refuses.
    """
    merged = _merge(load_clip(file), new)  # loaded anew: another process may have added rows
    tensors = {ROWS: torch.tensor(merged.rows), RAW: merged.raw.contiguous()}
    tensors |= {name: value.contiguous() for name, value in merged.text.items()}
    about = {"path": str(clip.where), "caption": clip.caption, "start": clip.start, "end": clip.end}
    clip_header = {**about, "info": asdict(merged.info)}
    sums = {
        "clip": digest(clip_header),
        "rows": {str(row): _sum(one) for row, one in zip(merged.rows, merged.raw, strict=True)},
        "text": {name: _sum(value) for name, value in merged.text.items()},
    }
    header = {"clip": json.dumps({**clip_header, "sums": sums})}  # one entry: several have no order of their own
    try:
        write_whole(file, lambda part: part.write_bytes(save(tensors, header)))
    except InputError as error:
        raise InputError(
            f"cache_dir {file.parent.parent}: can't write the latents of {clip.where.name} ({error}). What is encoded "
            "so far stays: free some space on that disk, or give another cache_dir, and run again"
        ) from error


def _sum(tensor: Tensor) -> str:
    """A checksum of a tensor's type, shape and bytes."""
    total = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=8)
    total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _merge(old: CachedClip | None, new: CachedClip) -> CachedClip:
    """Both files' rows; one that both have is taken from `new`."""
    if old is None:
        return new
    found = {row: raw for one in (old, new) for row, raw in zip(one.rows, one.raw, strict=True)}
    rows = sorted(found)
    dtype = torch.promote_types(old.raw.dtype, new.raw.dtype)
    return replace(new, rows=rows, raw=torch.stack([found[row].to(dtype) for row in rows]))
