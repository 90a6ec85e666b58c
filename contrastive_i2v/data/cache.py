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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from contrastive_i2v.data.reading import stamp_clip
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoInfo
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import digest, write_whole
from contrastive_i2v.system import ImageEmbeds, Size, Text

PREPROCESSING = 1
"""Part of every cache key: raise it when the way from a file to the encoder's input changes."""
ROWS, RAW, IMAGE = "frames", "moments", "image/"
"""Names of the tensors in a file that are no text; what `IMAGE` begins is image/ROW/NAME."""


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
    images: dict[int, ImageEmbeds] = field(default_factory=dict)
    """What a system that sees pixels made of each run's given frames, `[*]` each, by the run's last row."""


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


def clip_key(clip: Clip) -> str:
    """A hash of place, size and time of the clip's files, the caption and the bounds. Raises VideoError where the video
    can't be read."""
    return digest([*stamp_clip(clip), clip.caption, clip.start, clip.end], 32)


def clip_file(folder: Path, clip: Clip) -> Path:
    """The cache file of a clip. Raises VideoError where the video can't be read."""
    return folder / f"{clip_key(clip)}.safetensors"


def load_clip(file: Path, rows: Sequence[int] | None = None) -> CachedClip | None:
    """A cache file's `rows`, in that order (None = all); None where it is absent, lacks one, or holds anything that
    isn't what was written."""
    try:
        with safe_open(file, framework="pt") as handle:
            header, raw = handle.metadata()["clip"], handle.get_slice(RAW)
            stored = handle.get_tensor(ROWS).tolist()
            places = list(range(len(stored))) if rows is None else [stored.index(row) for row in rows]
            picked = torch.stack([raw[place] for place in places]) if places else raw[:0]
            wanted = stored if rows is None else rows
            images = [f"{IMAGE}{row}/" for row in wanted]
            names = [name for name in handle.keys() if name not in (ROWS, RAW)]  # noqa: SIM118
            rest = {
                name: handle.get_tensor(name)
                for name in names
                if not name.startswith(IMAGE) or name.startswith(tuple(images))
            }
            if len(stored) != raw.get_shape()[0]:
                return None
            return _checked(header, wanted, picked, rest)[0]
    except Exception:  # what isn't there, and damage, which readers have many errors for
        return None


def parse_clip(data: bytes) -> tuple[CachedClip, dict[str, Any]]:
    """What `pack_clip` made the bytes of, and what it was given beside the clip. Raises ValueError for damage."""
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])["__metadata__"]["clip"]
        tensors = load(data)
        return _checked(header, tensors.pop(ROWS).tolist(), tensors.pop(RAW), tensors)
    except Exception as error:  # readers have many errors for damage
        raise ValueError(one_line(error)) from error


def _checked(
    header: str, rows: Sequence[int], raw: Tensor, rest: dict[str, Tensor]
) -> tuple[CachedClip, dict[str, Any]]:
    """Raises ValueError, or whatever else comes of damage."""
    text = {name: value for name, value in rest.items() if not name.startswith(IMAGE)}
    images: dict[int, ImageEmbeds] = {}
    for name in rest.keys() - text.keys():
        row, _, tensor = name.removeprefix(IMAGE).partition("/")
        images.setdefault(int(row), {})[tensor] = rest[name]
    said = json.loads(header)
    sums = said.pop("sums")
    if sums["clip"] != digest(said):
        raise ValueError("the header isn't the one that was written")
    if sums["text"] != _sums(text):
        raise ValueError("the text isn't the one that was written")
    if any(sums["rows"][str(row)] != _sum(one) for row, one in zip(rows, raw, strict=True)):
        raise ValueError("the latents aren't those that were written")
    expected = {row: sums.get("images", {}).get(str(row)) for row in rows}
    if {row: sum_ for row, sum_ in expected.items() if sum_} != {row: _sums(one) for row, one in images.items()}:
        raise ValueError("the image embeddings aren't those that were written")
    return CachedClip(list(rows), raw, text, VideoInfo(**said["info"]), images), said


def store_clip(file: Path, new: CachedClip, clip: Clip) -> None:
    """Write a cache file whole, or nothing; rows that it holds already stay.

    Raises InputError naming the cache when the disk refuses.
    """
    data = pack_clip(_merge(load_clip(file), new), clip)  # loaded anew: another process may have added rows
    try:
        write_whole(file, lambda part: part.write_bytes(data))
    except InputError as error:
        raise InputError(
            f"cache_dir {file.parent.parent}: can't write the latents of {clip.where.name} ({error}). What is encoded "
            "so far stays: free some space on that disk, or give another cache_dir, and run again"
        ) from error


def pack_clip(cached: CachedClip, clip: Clip, **more: Any) -> bytes:
    """A cache file's bytes: tensors, checksums, what the clip is, and what else is given, as JSON has it."""
    tensors = {ROWS: torch.tensor(cached.rows), RAW: cached.raw.contiguous()}
    tensors |= {name: value.contiguous() for name, value in cached.text.items()}
    tensors |= {
        f"{IMAGE}{row}/{name}": value.contiguous()
        for row, image in cached.images.items()
        for name, value in image.items()
    }
    about = {"path": str(clip.where), "caption": clip.caption, "start": clip.start, "end": clip.end}
    header = {**about, "info": asdict(cached.info), **more}
    sums = {
        "clip": digest(header),
        "rows": {str(row): _sum(one) for row, one in zip(cached.rows, cached.raw, strict=True)},
        "text": _sums(cached.text),
    }
    if cached.images:
        sums["images"] = {str(row): _sums(image) for row, image in cached.images.items()}
    # one entry: several have no order of their own
    data: bytes = save(tensors, {"clip": json.dumps({**header, "sums": sums})})
    return data


def _sums(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: _sum(value) for name, value in tensors.items()}


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
    raw = torch.stack([found[row].to(dtype) for row in rows])
    return replace(new, rows=rows, raw=raw, images=old.images | new.images)
