"""Clips become shards of latents (`data.shards`): `contrastive-i2v encode --output FOLDER`.

Every process takes each `ranks`-th clip and writes shards of its own, without a word to the others: `RANK-NUMBER.tar`,
under way `RANK-NUMBER.tar.part`, and a journal `RANK.jsonl` of a line for each batch of clips, after which a killed
process goes on. The last one to finish writes the manifest.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from contrastive_i2v.data.ahead import read_ahead
from contrastive_i2v.data.cache import CachedClip, clip_key, pack_clip, row_keys
from contrastive_i2v.data.examples import ClipFrames, WindowReader, encode_captions, encode_images, encode_runs
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

    A stopped process loses at most the batch under way. Processes may come and go, and be another number the next
    time: what is encoded stays encoded.

    Args:
        clips: all clips, in the same order in every process.
        read: draws the windows and reads their frames, in `workers` processes ahead of the encoder.
        frames_at_once: what the encoder gets together, from as many clips as have them.
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
        batch: list[tuple[int, ClipFrames | Skipped]] = []
        held = 0
        for number, frames in zip(mine, bar, strict=True):
            batch.append((number, frames))
            held += 0 if isinstance(frames, Skipped) else sum(map(len, frames.pixels))
            if held >= frames_at_once:
                _encode_batch(batch, clips, system, read, journal, frames_at_once, shard_bytes)
                batch, held = [], 0
        if batch:
            _encode_batch(batch, clips, system, read, journal, frames_at_once, shard_bytes)
        journal.close_shard()
    return _finish(output, setting, clips, system, read)


def _encode_batch(
    batch: Sequence[tuple[int, ClipFrames | Skipped]],
    clips: Sequence[Clip],
    system: System,
    read: WindowReader,
    journal: _Journal,
    frames_at_once: int,
    shard_bytes: int,
) -> None:
    found = [(number, one) for number, one in batch if isinstance(one, ClipFrames)]
    members: list[tuple[str, bytes]] = []
    lines: list[dict[str, Any]] = []
    if found:
        owners = [clips[number] for number, one in found for _ in one.runs]
        pixels = [run for _, one in found for run in one.pixels]
        encoded = iter(encode_runs(pixels, system, owners, at_once=frames_at_once))
        texts = encode_captions([clips[number] for number, _ in found], system)
        for (number, one), text in zip(found, texts, strict=True):
            raw = torch.cat([next(encoded) for _ in one.runs])
            rows = [row for run in one.runs for row in row_keys(run, read.temporal_downscale)]
            drawn = [read.index(window, 0, one.drawn.frame_rate) for window in one.drawn.windows]
            examples = [[index.rows, index.present, index.fps] for index in drawn]
            images = encode_images(list(zip(one.runs, one.pixels, strict=True)), system, clips[number])
            data = pack_clip(CachedClip(rows, raw, text, one.info, images), clips[number], examples=examples)
            members.append((f"{number:09d}.safetensors", data))
            rates = sorted({index.fps for index in drawn})
            lines.append({"clip": number, "examples": len(examples), "rates": rates})
    lines += [{"clip": n, "path": str(one.path), "skipped": one.reason} for n, one in batch if isinstance(one, Skipped)]
    journal.write(members, lines, shard_bytes)


class _Journal:
    """One process's shards and the journal of what is in them. Raises InputError when the disk refuses."""

    def __init__(self, output: Path, rank: int, setting: str) -> None:
        self.output, self.rank, self.setting = output, rank, setting
        self.lock = lock_folder(output / f".{rank:05d}")
        self.path = output / f"{rank:05d}.jsonl"
        lines = self.lines(self.path, setting) if self.path.exists() else []
        self.shard = lines[-1]["shard"] if lines else 0
        self.tar: tarfile.TarFile | None = None
        self.file: IO[bytes] | None = None
        if lines and self._part.exists():
            self._open(lines[-1]["end"])
        elif lines:
            self.shard += 1
        text = "".join(json.dumps(line) + "\n" for line in [{"setting": setting}, *lines])
        write_whole(self.path, lambda part: part.write_text(text))  # without a line that was torn

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.lock is not None:
            self.lock.close()

    @property
    def name(self) -> str:
        return f"{self.rank:05d}-{self.shard:05d}.tar"

    @property
    def _part(self) -> Path:
        return self.output / f"{self.name}.part"

    def write(self, members: Sequence[tuple[str, bytes]], clips: Sequence[dict[str, Any]], shard_bytes: int) -> None:
        """Append members to the shard, then a line to the journal; close the shard where it is full."""
        try:
            end = self._append(members) if members else (self.tar.offset if self.tar else 0)
            line = {"shard": self.shard, "end": end, "clips": list(clips)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.output}: can't be written ({error.strerror or error}). What is encoded so far stays: free some "
                "space on that disk and run again"
            ) from error
        if end >= shard_bytes:
            self.close_shard()

    def _append(self, members: Sequence[tuple[str, bytes]]) -> int:
        if self.tar is None:
            self._open(0)
        assert self.tar is not None
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            self.tar.addfile(header, io.BytesIO(data))
        assert self.file is not None
        self.file.flush()
        return int(self.tar.offset)

    def _open(self, end: int) -> None:
        """The shard under way, cut to `end` bytes."""
        with suppress(FileExistsError):
            self._part.touch(exist_ok=False)
        self.file = self._part.open("r+b")
        self.file.truncate(end)
        self.file.seek(end)
        self.tar = tarfile.TarFile(fileobj=self.file, mode="w")

    def close_shard(self) -> None:
        """Give the shard its name."""
        if self.tar is None or self.file is None:
            return
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._part.replace(self.output / self.name)
        self.tar, self.shard = None, self.shard + 1

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
        """Clip -> what the journals say of it, with the shard's name; but for shards that are gone."""
        done: dict[int, dict[str, Any]] = {}
        for path in sorted(output.glob("*.jsonl")):
            for line in _Journal.lines(path, setting):
                name = f"{path.stem}-{line['shard']:05d}.tar"
                there = (output / name).exists() or (output / f"{name}.part").exists()
                for clip in line["clips"]:
                    if there or "skipped" in clip:
                        done[clip["clip"]] = {**clip, "shard": name}
        return done


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
    if len(done) < len(clips) or any(output.glob("*.tar.part")):
        return None
    skipped = [(one["path"], one["skipped"]) for _, one in sorted(done.items()) if "skipped" in one]
    counts: dict[str, list[int]] = {}
    for one in done.values():
        if "examples" in one:
            counts.setdefault(one["shard"], []).append(one["examples"])
    if not counts:
        raise NoClipLeft([Skipped(Path(path), reason) for path, reason in skipped])
    shards = [
        ShardInfo(name, (output / name).stat().st_size, len(examples), sum(examples))
        for name, examples in sorted(counts.items())
    ]
    manifest = Manifest(
        version=VERSION,
        fingerprint=system.fingerprint,
        windows=json.loads(json.dumps(asdict(read))),
        clips=sum(one.clips for one in shards),
        examples=sum(one.examples for one in shards),
        rates=sorted({rate for one in done.values() for rate in one.get("rates", ())}),
        skipped=skipped,
        shards=shards,
    )
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    write_whole(output / MANIFEST, lambda part: part.write_text(text))
    return manifest
