"""Dataset formats on disk, one file each. `read` recognises which one a path is, and SOURCES lists them.

A new format is a file here with a `Source`, and its module's name in SOURCES.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from contrastive_i2v.data.sources import (
    diffusion_pipe,
    folder,
    instruct_pix2pix,
    internvid,
    msrvtt,
    musubi_tuner,
    openvid,
    panda70m,
    two_lists,
    webdataset,
    webvid,
)
from contrastive_i2v.data.sources.folder import NoVideos, read_folder
from contrastive_i2v.data.sources.source import Place, Purpose, Request, Source, SourceConfig
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.errors import InputError, one_line

__all__ = ["SOURCES", "Dataset", "SourceConfig", "read", "read_folder"]

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE
    for module in (
        folder, two_lists, instruct_pix2pix, msrvtt, webvid, internvid, panda70m, openvid, webdataset, musubi_tuner,
        diffusion_pipe,
    )
}  # fmt: skip
FOLDER = folder.SOURCE.name


@dataclass(frozen=True)
class Dataset:
    """What `read` found."""

    path: Path
    format: str
    split: str | None
    clips: list[Clip]
    skipped: list[Skipped]
    """What was left out, each with the reason."""

    def __str__(self) -> str:
        """One line for the user."""
        split = f", split {self.split}" if self.split else ""
        empty = sum(not clip.caption for clip in self.clips)
        notes = f", {empty} of them with an empty caption" if empty else ""
        notes += f", {len(self.skipped)} left out" if self.skipped else ""
        return f"{self.path}: {self.format}{split}, {len(self.clips)} clips{notes}"


def read(path: str | Path, config: SourceConfig | None = None, *, seed: int = 0, purpose: Purpose = "train") -> Dataset:
    """The captioned clips of a dataset on the disk, in the order of its lists. No video is opened.

    A row whose file isn't there, or that has no caption, is left out with the reason.

    Args:
        path: its folder, or one of its lists (.csv, .json, .jsonl, .toml, .parquet, .tar).
        config: how; None = the format recognised, and its defaults.
        seed: of what is drawn: one of several captions, one of several pairs. Each draw is a function of (seed, clip).
        purpose: which split is read where the config says none and the dataset has some.

    Raises:
        InputError: no such path, a format that isn't recognised or is ambiguous, an option that the format has no use
            for, a split it doesn't have, or a list that can't be read.
        NoClipLeft: every row was left out.
    """
    path, config = Path(path).expanduser(), config or SourceConfig()
    source, place = _source(path, config)
    for option in fields(SourceConfig):
        unused = option.name not in ("format", "captions", *source.takes)
        if unused and getattr(config, option.name) != option.default:
            raise InputError(f"source.{option.name}: {source.name}, the format of {path}, has no use for it")
    if config.videos is not None and not config.videos.expanduser().is_dir():
        raise InputError(
            f"source.videos: {config.videos} is no folder; expected the one that the files of {path} are in"
        )
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    try:
        items, split = source.read(Request(place, config, seed, purpose))
        for item in items:
            if isinstance(item, Clip):
                clips.append(item)
            else:
                skipped.append(item)
    except NoVideos as error:
        raise InputError(f"{error}. Beside videos, looked for {_looked_for(SOURCES.values())}") from error
    if not clips:
        reasons = "; ".join(f"{one_line(one.path)}: {one_line(one.reason)}" for one in skipped[:3])
        raise NoClipLeft(skipped, f"{path}: {source.name}, and none of its {len(skipped)} rows can be used: {reasons}")
    return Dataset(path, source.name, split, clips, skipped)


def _source(path: Path, config: SourceConfig) -> tuple[Source, Place]:
    if config.format is not None and config.format not in SOURCES:
        raise InputError(f"source.format: {config.format} is unknown; expected one of {', '.join(SOURCES)}")
    if not path.exists():
        raise InputError(f"{path}: no such folder or file; expected a dataset, or a folder of videos with captions")
    place = Place(path)
    asked = [SOURCES[config.format]] if config.format else list(SOURCES.values())
    found = [source for source in asked if source.recognise(place)]
    if len(found) == 1:
        return found[0], place
    if found:
        raise InputError(
            f"{path}: could be {' or '.join(source.name for source in found)}; give one as source.format. "
            f"Found {_looked_for(found)}"
        )
    if place.file is None and config.format in (None, FOLDER):
        return SOURCES[FOLDER], place
    raise InputError(f"{path}: no format was recognised. Looked for {_looked_for(asked)}")


def _looked_for(sources: Iterable[Source]) -> str:
    return "; ".join(f"{source.looks_for} ({source.name})" for source in sources)
