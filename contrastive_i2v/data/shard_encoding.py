"""Clips become shards of latents (`data.shards`): `contrastive-i2v encode --output FOLDER`.

Every process takes each `ranks`-th clip and writes shards of its own, of one bucket each, without a word to the others:
`RANK-NUMBER.tar`, under way `RANK-NUMBER.tar.part`, and a journal `RANK.jsonl` of a line for each batch of clips, after
which a killed process goes on. The last one to finish closes what processes that are gone left under way, and writes
the manifest.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from contrastive_i2v.data.ahead import read_ahead
from contrastive_i2v.data.buckets import Bucket
from contrastive_i2v.data.cache import CachedClip, clip_key, pack_clip, row_keys
from contrastive_i2v.data.examples import (
    ClipFrames,
    ExampleIndex,
    WindowReader,
    encode_captions,
    encode_images,
    encode_runs,
)
from contrastive_i2v.data.shards import MANIFEST, VERSION, Manifest, ShardInfo
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.data.video import VideoError
from contrastive_i2v.errors import InputError
from contrastive_i2v.files import digest, lock_folder, parse_json, write_whole
from contrastive_i2v.system import System


class ClipReading(Dataset[ClipFrames | Skipped]):
    """Clips decoded by a DataLoader's workers."""

    def __init__(self, clips: Sequence[Clip], read: WindowReader) -> None:
        self.clips, self.read = clips, read

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipFrames | Skipped:
        clip = self.clips[index]
        try:
            return self.read(clip)
        except VideoError as error:
            return Skipped.because(clip.where, error)


def encode_shards(
    clips: Sequence[Clip],
    system: System,
    output: Path,
    read: WindowReader,
    *,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    frames_at_once: int = 64,
    shard_bytes: int = 2**25,
    progress: bool = True,
) -> Manifest | None:
    """Encode each `ranks`-th clip from `rank` on into shards; a call like one that was stopped goes on after it.

    A stopped process loses at most the batch under way of each bucket. Processes may come and go, and be another
    number the next time: what is encoded stays encoded.

    Args:
        clips: all clips, in the same order in every process.
        read: draws the windows and reads their frames, in `workers` processes ahead of the encoder.
        frames_at_once: what the encoder gets together, from as many clips of one bucket as have them.
        shard_bytes: a shard is closed when it has as many.

    Returns:
        the manifest, when this process was the last; None while others have clips to encode.

    Raises:
        InputError: a folder of other clips or another setting, a disk that refuses, latents that aren't finite; and
            NoClipLeft where every clip was left out.
    """
    setting = _setting(clips, system, read)
    output.mkdir(parents=True, exist_ok=True)
    done = _Journal.read_all(output, setting)
    mine = [number for number in range(rank, len(clips), ranks) if number not in done]
    total = len(range(rank, len(clips), ranks))
    loader = DataLoader(ClipReading([clips[i] for i in mine], read), batch_size=None, num_workers=workers)
    with _Journal(output, rank, setting) as journal:
        clips_read = read_ahead(loader, go_on="run the same command again: what is done stays")
        bar = tqdm(
            clips_read, desc="encoding", unit="clip", initial=total - len(mine), total=total, disable=not progress
        )
        held: dict[Bucket, dict[int, ClipFrames]] = {}
        for number, frames in zip(mine, bar, strict=True):
            if isinstance(frames, Skipped):
                journal.note([{"clip": number, "path": str(frames.path), "skipped": frames.reason}])
                continue
            bucket = _bucket_of(frames, read)
            batch = held.setdefault(bucket, {})
            batch[number] = frames
            if sum(len(run) for one in batch.values() for run in one.pixels) >= frames_at_once:
                _encode_batch(held.pop(bucket), clips, system, read, journal, bucket, frames_at_once, shard_bytes)
        for bucket, batch in sorted(held.items()):
            _encode_batch(batch, clips, system, read, journal, bucket, frames_at_once, shard_bytes)
        journal.close_shards()
    return _finish(output, setting, clips, system, read)


def _bucket_of(frames: ClipFrames, read: WindowReader) -> Bucket:
    height, width = frames.pixels[0].shape[-2:]
    return Bucket(height, width, len(read.index(frames.drawn.windows[0], 0, 1.0).rows))


def _encode_batch(
    batch: dict[int, ClipFrames],
    clips: Sequence[Clip],
    system: System,
    read: WindowReader,
    journal: _Journal,
    bucket: Bucket,
    frames_at_once: int,
    shard_bytes: int,
) -> None:
    members: list[tuple[str, bytes]] = []
    lines: list[dict[str, Any]] = []
    owners = [clips[number] for number, one in batch.items() for _ in one.runs]
    pixels = [run for one in batch.values() for run in one.pixels]
    encoded = iter(encode_runs(pixels, system, owners, at_once=frames_at_once))
    texts = encode_captions([clips[number] for number in batch], system)
    for (number, one), text in zip(batch.items(), texts, strict=True):
        raw = torch.cat([next(encoded) for _ in one.runs])
        rows = [row for run in one.runs for row in row_keys(run, read.temporal_downscale)]
        drawn = [read.index(window, 0, one.drawn.frame_rate) for window in one.drawn.windows]
        examples = [_stored(index) for index in drawn]
        images = encode_images(list(zip(one.runs, one.pixels, strict=True)), system, clips[number])
        data = pack_clip(CachedClip(rows, raw, text, one.info, images), clips[number], examples=examples)
        members.append((f"{number:09d}.safetensors", data))
        rates = sorted({index.fps for index in drawn})
        followed = [sum(len(index.following) > after for index in drawn) for after in range(read.following)]
        lines.append({"clip": number, "examples": len(examples), "rates": rates, "followed": followed})
    journal.write(bucket, members, lines, shard_bytes)


def _stored(index: ExampleIndex) -> list[Any]:
    """As `Shard` reads it."""
    return [index.rows, index.present, index.fps, [_stored(one) for one in index.following]]


class _OpenShard:
    """A shard under way, from `end` bytes on."""

    def __init__(self, number: int, part: Path, end: int) -> None:
        self.number, self.part = number, part
        with suppress(FileExistsError):
            part.touch(exist_ok=False)
        self.file = part.open("r+b")
        self.file.truncate(end)
        self.file.seek(end)
        self.tar = tarfile.TarFile(fileobj=self.file, mode="w")

    def append(self, members: Sequence[tuple[str, bytes]]) -> int:
        """Returns the bytes that there are then."""
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            self.tar.addfile(header, io.BytesIO(data))
        self.file.flush()
        return int(self.tar.offset)

    def close(self) -> None:
        """Give the shard its name."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.part.replace(self.part.with_suffix(""))

    def abandon(self) -> None:
        with suppress(OSError):  # what a full disk refused, it refuses again
            self.file.close()


class _Journal:
    """One process's shards, one under way of each bucket, and the journal of what is in them. Raises InputError when
    the disk refuses."""

    def __init__(self, output: Path, rank: int, setting: str) -> None:
        self.output, self.rank = output, rank
        self.lock = lock_folder(output / f".{rank:05d}")
        self.path = output / f"{rank:05d}.jsonl"
        lines = self.lines(self.path, setting) if self.path.exists() else []
        buckets = {line["shard"]: Bucket(*line["bucket"]) for line in lines if "shard" in line}
        self.lost = sorted(
            (bucket, number) for number, bucket in buckets.items() if not _is_there(output, self._name(number))
        )
        """Shards that are gone: made anew from the same clips they are the same again, so their numbers come first."""
        gone = {number for _, number in self.lost}
        lines = [{**line, "clips": [], "end": 0} if line.get("shard") in gone else line for line in lines]
        text = "".join(json.dumps(line) + "\n" for line in [{"setting": setting}, *lines])
        write_whole(self.path, lambda part: part.write_text(text))  # without a line that was torn
        last = {line["shard"]: line for line in lines if "shard" in line}
        self.shards = 1 + max(last, default=-1)
        """Begun so far."""
        self.open: dict[Bucket, _OpenShard] = {}
        for part in sorted(output.glob(f"{rank:05d}-*.tar.part")):
            if (line := last.get(int(part.name[6:11]))) is None:
                part.unlink()  # killed before its first line
            else:
                self.open[Bucket(*line["bucket"])] = _OpenShard(line["shard"], part, line["end"])

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self.open.values():
            shard.abandon()
        if self.lock is not None:
            self.lock.close()

    def _name(self, number: int) -> str:
        return f"{self.rank:05d}-{number:05d}.tar"

    def write(
        self, bucket: Bucket, members: Sequence[tuple[str, bytes]], clips: Sequence[dict[str, Any]], shard_bytes: int
    ) -> None:
        """Append members to the bucket's shard, then a line to the journal; close the shard where it is full."""
        with _said(self.output):
            if bucket not in self.open:
                number = next((lost for of, lost in self.lost if of == bucket), self.shards)
                self.lost = [one for one in self.lost if one != (bucket, number)]
                self.shards = max(self.shards, number + 1)
                self.open[bucket] = _OpenShard(number, self.output / f"{self._name(number)}.part", 0)
            shard = self.open[bucket]
            end = shard.append(members)
            self.note(clips, shard=shard.number, bucket=bucket, end=end)
            if end >= shard_bytes:
                self.open.pop(bucket).close()

    def note(self, clips: Sequence[dict[str, Any]], **where: Any) -> None:
        """A line about clips, and where they are unless they were left out."""
        with _said(self.output), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**where, "clips": list(clips)}) + "\n")

    def close_shards(self) -> None:
        with _said(self.output):
            for shard in self.open.values():
                shard.close()
        self.open = {}

    @staticmethod
    def lines(path: Path, setting: str) -> list[dict[str, Any]]:
        """A journal's lines but for a torn last one. Raises InputError where it is of another setting."""
        found = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(parse_json(text))
            except ValueError:
                break
        if not found or found[0] != {"setting": setting}:
            raise InputError(
                f"{path.parent}: holds latents of other clips, or encoded otherwise; give another --output, or delete "
                "that folder"
            )
        return found[1:]

    @staticmethod
    def read_all(output: Path, setting: str) -> dict[int, dict[str, Any]]:
        """Clip -> what the journals say of it, with the shard's name and bucket; but for shards that are gone."""
        done: dict[int, dict[str, Any]] = {}
        for path in sorted(output.glob("*.jsonl")):
            for line in _Journal.lines(path, setting):
                if "shard" not in line:
                    done |= {clip["clip"]: clip for clip in line["clips"]}
                    continue
                name = f"{path.stem}-{line['shard']:05d}.tar"
                if _is_there(output, name):
                    where = {"shard": name, "bucket": line["bucket"]}
                    done |= {clip["clip"]: {**clip, **where} for clip in line["clips"]}
        return done


def _is_there(output: Path, name: str) -> bool:
    """Whether there is a shard, or one under way."""
    return (output / name).exists() or (output / f"{name}.part").exists()


@contextmanager
def _said(output: Path) -> Iterator[None]:
    """A disk's refusal as an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{output}: can't be written ({error.strerror or error}). What is encoded so far stays: free some space on "
            "that disk and run again"
        ) from error


def _setting(clips: Sequence[Clip], system: System, read: WindowReader) -> str:
    """A hash of all that the shards are a function of."""

    def key(clip: Clip) -> str:
        try:
            return clip_key(clip)
        except VideoError:
            return str(clip.where)  # left out, with the reason, when it is read

    return digest([VERSION, system.fingerprint, asdict(read), [key(clip) for clip in clips]], 32)


def _finish(output: Path, setting: str, clips: Sequence[Clip], system: System, read: WindowReader) -> Manifest | None:
    """Write the manifest where nothing is left to do."""
    done = _Journal.read_all(output, setting)
    if len(done) < len(clips):
        return None
    for rank in sorted({int(part.name[:5]) for part in output.glob("*.tar.part")}):
        with suppress(InputError), _Journal(output, rank, setting) as left:  # InputError: its process is still there
            left.close_shards()
    if any(output.glob("*.tar.part")):
        return None
    skipped = [(one["path"], one["skipped"]) for _, one in sorted(done.items()) if "skipped" in one]
    held: dict[str, list[dict[str, Any]]] = {}
    for one in done.values():
        if "shard" in one:
            held.setdefault(one["shard"], []).append(one)
    if not held:
        raise NoClipLeft([Skipped(Path(path), reason) for path, reason in skipped])
    shards = [
        ShardInfo(
            name,
            (output / name).stat().st_size,
            clips=len(some),
            examples=sum(one["examples"] for one in some),
            bucket=some[0]["bucket"],
            followed=[sum(counts) for counts in zip(*(one["followed"] for one in some), strict=True)],
        )
        for name, some in sorted(held.items())
    ]
    manifest = Manifest(
        version=VERSION,
        fingerprint=system.fingerprint,
        windows=read,
        clips=sum(one.clips for one in shards),
        examples=sum(one.examples for one in shards),
        rates=sorted({rate for one in done.values() for rate in one.get("rates", ())}),
        skipped=skipped,
        shards=shards,
    )
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    write_whole(output / MANIFEST, lambda part: part.write_text(text))
    return manifest
