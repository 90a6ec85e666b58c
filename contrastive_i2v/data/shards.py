"""Latents in shards, for more clips than files of their own serve well: what training reads.

A shard is a plain tar, as WebDataset has it, of cache files (`data.cache`), each with its checksums and with the
windows that were drawn from its clip. `manifest.json` says what was encoded how, and what each shard holds.
`data.shard_encoding` writes them; training reads whole shards, in the order of `data.shard_order`, from a folder or
from any URL that fsspec opens.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dacite
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from contrastive_i2v.data.cache import CachedClip, parse_clip
from contrastive_i2v.data.examples import Example, WindowReader, example_of
from contrastive_i2v.data.shard_order import Place
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import digest, parse_json
from contrastive_i2v.system import System

MANIFEST = "manifest.json"
VERSION = 1
"""Of the manifest and the shards."""
TRIES = 6
"""How often a shard is read before its store counts as gone; the waits between them are 1, 2, 4, 8 and 16 s."""


@dataclass(frozen=True)
class ShardInfo:
    name: str
    bytes: int
    clips: int
    examples: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds."""

    version: int
    fingerprint: str
    """Of the system that encoded it."""
    windows: dict[str, Any]
    """The window, size, frames and seed: a `WindowReader` as JSON has it."""
    clips: int
    examples: int
    rates: list[float]
    """Frames a second that windows have."""
    skipped: list[tuple[str, str]]
    """Path and reason of each clip that was left out."""
    shards: list[ShardInfo]


def read_manifest(root: str) -> Manifest:
    """The manifest of a folder or URL. Raises InputError."""
    path = f"{root.rstrip('/')}/{MANIFEST}"
    try:
        values = parse_json(read_bytes(path).decode())
        if not isinstance(values, dict) or values.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION} of a manifest")
        manifest = dacite.from_dict(Manifest, values, dacite.Config(cast=[tuple]))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: isn't there; expected latents that `contrastive-i2v encode --output` wrote to their end"
        ) from error
    except (ValueError, dacite.DaciteError) as error:
        raise InputError(f"{path}: isn't a manifest of latents ({one_line(error)}); encode again") from error
    for one in manifest.shards:
        if Path(one.name).name != one.name or one.examples < 1:
            raise InputError(f"{path}: names a shard {one.name!r} of {one.examples} examples; encode again")
    return manifest


def read_bytes(path: str, *, size: int | None = None, tries: int = TRIES) -> bytes:
    """A file of a disk or a store that may be away for a while.

    Args:
        size: bytes that it must have.

    Raises:
        FileNotFoundError; InputError when it can't be read after `tries`, or has another size.
    """
    import fsspec

    for number in range(tries):
        try:
            with fsspec.open(path, "rb") as file:
                data: bytes = file.read()
            break
        except FileNotFoundError:
            raise
        except Exception as error:  # every store has its own
            if number == tries - 1:
                raise InputError(f"{path}: can't be read after {tries} tries ({one_line(error)})") from error
            time.sleep(2**number)
    if size is not None and len(data) != size:
        raise InputError(
            f"{path}: has {len(data)} bytes of {size}; copy it anew, or delete it and encode again: what is whole stays"
        )
    return data


class Shard:
    """A shard's clips and examples. Raises InputError for damage, naming the member."""

    def __init__(self, path: str, info: ShardInfo) -> None:
        self.clips: list[tuple[CachedClip, Tensor]] = []
        """Each clip and its group."""
        self.examples: list[tuple[int, list[int], Tensor, Tensor]] = []
        """Clip, places among its latents, present and fps of each example."""
        member = "its index"
        try:
            with tarfile.open(fileobj=io.BytesIO(read_bytes(path, size=info.bytes)), mode="r:") as tar:
                for header in tar:
                    member = header.name
                    file = tar.extractfile(header)
                    if file is None:
                        raise ValueError("not a file")
                    self._add(*parse_clip(file.read()))
        except (tarfile.TarError, ValueError) as error:
            raise InputError(
                f"{path}: is damaged at {member} ({one_line(error)}); copy it anew, or delete it and encode again: "
                "what is whole stays"
            ) from error
        except FileNotFoundError as error:
            raise InputError(f"{path}: isn't there; copy it anew, or encode again: what is whole stays") from error
        if (len(self.clips), len(self.examples)) != (info.clips, info.examples):
            raise InputError(
                f"{path}: has {len(self.clips)} clips and {len(self.examples)} examples, and the manifest says "
                f"{info.clips} and {info.examples}; they are not of one encoding"
            )

    def _add(self, cached: CachedClip, header: dict[str, Any]) -> None:
        group = torch.tensor(int(digest(header["path"]), 16) >> 1)
        places = {row: place for place, row in enumerate(cached.rows)}
        for rows, present, fps in header["examples"]:
            one = (len(self.clips), [places[row] for row in rows], torch.tensor(present), torch.tensor(fps))
            self.examples.append(one)
        self.clips.append((cached, group))

    def __getitem__(self, number: int) -> Example:
        clip, places, present, fps = self.examples[number]
        cached, group = self.clips[clip]
        image = cached.images.get(cached.rows[places[-1]])
        return example_of(cached.raw[places], present, cached.text, fps, group, image)


class ShardDataset(Dataset[Example]):
    """Batches of examples by their places; `held` shards stay in memory.

    Raises InputError for shards of another system or setting than are asked for, naming both.
    """

    def __init__(self, root: str, system: System, read: WindowReader, *, held: int) -> None:
        self.root, self.manifest, self.held = root.rstrip("/"), read_manifest(root), held
        if self.manifest.fingerprint != system.fingerprint:
            raise InputError(f"{root}: was encoded with another autoencoder or text encoder than the model's")
        asked, has = json.loads(json.dumps(asdict(read))), self.manifest.windows
        if differ := [name for name in asked if asked[name] != has.get(name)]:
            said = "; ".join(f"{name}: {has.get(name)}, asked for {asked[name]}" for name in differ)
            raise InputError(f"{root}: was encoded with other options ({said}); give those, or encode again")
        self.open: OrderedDict[int, Shard] = OrderedDict()
        self.rates = self.manifest.rates
        """Frames a second that its windows have."""

    def __getitem__(self, places: Sequence[Place]) -> Example:
        batch: Example = default_collate([self._shard(place.shard)[place.number] for place in places])
        return batch

    def _shard(self, number: int) -> Shard:
        if number not in self.open:
            info = self.manifest.shards[number]
            self.open[number] = Shard(f"{self.root}/{info.name}", info)
            if len(self.open) > self.held:
                self.open.popitem(last=False)
        self.open.move_to_end(number)
        return self.open[number]
