"""Latents in shards, for more clips than files of their own serve well: what training reads.

A shard is a plain tar, as WebDataset has it, of cache files (`data.cache`), each with its checksums and with the
windows that were drawn from its clip. `manifest.json` says what was encoded how, and what each shard holds.
`data.shard_encoding` writes them; training reads whole shards, in the order of `data.shard_order`, from a folder or
from any URL that fsspec opens.
"""

from __future__ import annotations

import io
import tarfile
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import dacite
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from contrastive_i2v.data.buckets import Bucket
from contrastive_i2v.data.cache import CachedClip, parse_clip
from contrastive_i2v.data.examples import Example, WindowReader, example_of
from contrastive_i2v.data.shard_order import Place
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import digest, parse_json
from contrastive_i2v.system import System

MANIFEST = "manifest.json"
VERSION = 2
"""Of the manifest and the shards."""
TRIES = 6
"""How often a shard is read before its store counts as gone; the waits between them are 1, 2, 4, 8 and 16 s."""
ROLLOUT_SHARDS = 2
"""Shards that rollouts drawn together begin in."""


@dataclass(frozen=True)
class ShardInfo:
    name: str
    bytes: int
    clips: int
    examples: int
    bucket: tuple[int, int, int]
    """A `Bucket`: height, width and frames of all of its examples."""
    followed: list[int]
    """Examples that at least 1, 2, ... windows follow."""

    def rollouts(self, depth: int) -> int:
        """Examples that a rollout of `depth` windows may begin with."""
        return [self.examples, *self.followed, 0][min(depth - 1, len(self.followed) + 1)]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds."""

    version: int
    fingerprint: str
    """Of the system that encoded it."""
    windows: WindowReader
    """The window, sizes, frames and seed."""
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
        manifest = dacite.from_dict(Manifest, values, dacite.Config(cast=[tuple, float]))
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


class StoredExample(NamedTuple):
    """Where an example is found in its shard."""

    clip: int
    places: list[int]
    """Among the clip's latents."""
    present: Tensor
    fps: Tensor
    following: tuple[StoredExample, ...]
    """The examples that a rollout from this one makes next."""


class Shard:
    """A shard's clips and examples. Raises InputError for damage, naming the member."""

    def __init__(self, path: str, info: ShardInfo) -> None:
        self.clips: list[tuple[CachedClip, Tensor]] = []
        """Each clip and its group."""
        self.examples: list[StoredExample] = []
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
        self.examples += _stored(len(self.clips), places, header["examples"])
        self.clips.append((cached, group))

    def __getitem__(self, number: int) -> Example:
        return self.read(self.examples[number])

    def read(self, stored: StoredExample) -> Example:
        """An example that is one of `examples`, or follows one."""
        cached, group = self.clips[stored.clip]
        image = cached.images.get(cached.rows[stored.places[-1]])
        return example_of(cached.raw[stored.places], stored.present, cached.text, stored.fps, group, image)


def _stored(clip: int, places: dict[int, int], examples: Sequence[Any]) -> tuple[StoredExample, ...]:
    return tuple(
        StoredExample(
            clip,
            [places[row] for row in rows],
            torch.tensor(present),
            torch.tensor(fps),
            _stored(clip, places, following),
        )
        for rows, present, fps, following in examples
    )


class ShardDataset(Dataset[Example]):
    """Batches of examples by their places; `held` shards of each bucket stay in memory.

    Raises InputError for shards of another system or setting than are asked for, naming both.
    """

    def __init__(self, root: str, system: System, read: WindowReader, *, held: int) -> None:
        self.root, self.manifest, self.windows = root.rstrip("/"), read_manifest(root), read
        if self.manifest.fingerprint != system.fingerprint:
            raise InputError(
                f"{root}: was encoded with another autoencoder or text encoder than the model's, or another precision"
            )
        has = self.manifest.windows
        names = [item.name for item in fields(read)]
        differ = [name for name in names if name != "following" and getattr(read, name) != getattr(has, name)]
        if read.following > has.following:
            differ.append("following")
        if differ:
            said = "; ".join(f"{name}: {getattr(has, name)}, asked for {getattr(read, name)}" for name in differ)
            raise InputError(f"{root}: was encoded with other options ({said}); give those, or encode again")
        self.open: OrderedDict[int, Shard] = OrderedDict()
        self.held = held * len(self.buckets())
        self.rates = self.manifest.rates
        """Frames a second that its windows have."""
        self.frames = read.window.frames
        """Latent frames of an example whose window is the system's own."""
        self.starts = [0, *accumulate(shard.examples for shard in self.manifest.shards)]
        """The number of each shard's first example, where all are counted."""

    def buckets(self) -> dict[Bucket | None, list[int]]:
        """Shards by bucket, the buckets rising; under None where all are of one."""
        if not (self.windows.buckets or self.windows.lengths):
            return {None: list(range(len(self.manifest.shards)))}
        found: dict[Bucket, list[int]] = {}
        for number, shard in enumerate(self.manifest.shards):
            found.setdefault(Bucket(*shard.bucket), []).append(number)
        return {bucket: found[bucket] for bucket in sorted(found)}

    @property
    def deepest(self) -> int:
        """Windows of the longest rollout that its windows are the truth of."""
        return max(1 + sum(count > 0 for count in shard.followed) for shard in self.manifest.shards)

    def draw_rollouts(self, count: int, depth: int, generator: torch.Generator) -> list[int]:
        """Numbers of examples with which rollouts of `depth` windows begin, with repeats, from a few shards."""
        weights = torch.tensor([float(shard.rollouts(depth)) for shard in self.manifest.shards])
        few = min(ROLLOUT_SHARDS, int(weights.count_nonzero()))
        starts = [
            self.starts[shard] + number
            for shard in torch.multinomial(weights, few, generator=generator).tolist()
            for number, example in enumerate(self._shard(shard).examples)
            if len(example.following) >= depth - 1
        ]
        return [starts[i] for i in torch.randint(len(starts), (count,), generator=generator)]

    def window(self, number: int, after: int) -> Example:
        """The example that comes `after` windows after another one."""
        place = bisect_right(self.starts, number) - 1
        shard = self._shard(place)
        first = shard.examples[number - self.starts[place]]
        return shard.read((first, *first.following)[after])

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
