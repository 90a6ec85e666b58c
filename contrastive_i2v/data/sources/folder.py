"""A folder of captioned videos, in the two layouts that trainers and Hugging Face's folder datasets share.

Either `NAME.txt` lies beside `NAME.mp4`, or a `metadata.csv` / `metadata.jsonl` in the folder (or in any
folder below it) has a row a clip: `file_name` relative to the metadata file, `text` (or `caption`), and
optionally `start` and `end` in seconds. Several rows may name one video: each is a clip.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.data.video import VIDEO_EXTENSIONS
from contrastive_i2v.errors import InputError

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
CAPTION_COLUMNS = ("text", "caption")


def read_folder(root: str | Path) -> tuple[list[Clip], list[Skipped]]:
    """The captioned clips below `root`, sorted by path and then as their metadata rows are, and the videos
    without a caption.

    A metadata row goes before a `NAME.txt`. Hidden files and folders are left alone. No video is opened here.

    Raises InputError for a folder that isn't there or holds no video, for no caption at all, and for metadata
    that can't be read, lacks its columns or names a file that isn't there.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise InputError(f"{root}: no such folder; expected a folder of videos with captions")
    if not root.is_dir():
        raise InputError(f"{root}: is a file; expected the folder that holds the videos and their captions")

    files = _walk(root)
    videos = [f for f in files if f.suffix.lower() in VIDEO_EXTENSIONS]
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    described: set[Path] = set()
    for metadata in (f for f in files if f.name in METADATA_NAMES):
        for path, where, row in _rows(metadata):
            described.add(path)
            if caption := _caption(row, where):
                start, end = (_seconds(row, key, where) for key in ("start", "end"))
                if start is not None and end is not None and start >= end:
                    raise InputError(f"{where}: start = {start:g} s is not before end = {end:g} s")
                clips.append(Clip(path, caption, start, end))
            else:
                skipped.append(Skipped(path, f"no caption: {where} has no text"))
    for path in videos:
        if path not in described:
            caption, reason = _caption_beside(path)
            if caption:
                clips.append(Clip(path, caption))
            else:
                skipped.append(Skipped(path, reason))

    if not clips and not skipped:
        raise InputError(f"{root}: holds no videos; looked in it and below for {', '.join(VIDEO_EXTENSIONS)}")
    if not clips:
        raise InputError(
            f"{root}: none of its {len(skipped)} videos has a caption "
            f"({_some([str(s.path.relative_to(root)) for s in skipped])}); put the caption of NAME.mp4 into "
            f"NAME.txt beside it, or write a metadata.csv with the columns file_name,text"
        )
    return sorted(clips, key=lambda c: c.path.as_posix()), sorted(skipped, key=lambda s: s.path.as_posix())


def _walk(root: Path) -> list[Path]:
    """Files below `root` that aren't hidden, sorted; linked folders are followed, each real folder once."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: can't be listed ({error.strerror})") from error

    files: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(s for s in subfolders if not s.startswith("."))
        if real not in seen:
            files += [Path(folder, n) for n in names if not n.startswith(".")]
        seen.add(real)
    return sorted(files)


def _rows(metadata: Path) -> Iterator[tuple[Path, str, Mapping[str, object]]]:
    """The rows of a metadata file as (video, "file, line n", row), once every video is known to be there."""
    rows = []
    missing = []
    for line, row in _read_csv(metadata) if metadata.suffix == ".csv" else _read_jsonl(metadata):
        where = f"{metadata}, line {line}"
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: expected the name of a video as file_name, got {name!r}")
        if not any(key in row for key in CAPTION_COLUMNS):
            raise InputError(f"{where}: expected the key text (or caption), got {_some(list(row))}")
        path = Path(os.path.normpath(metadata.parent / name.strip()))
        rows.append((path, where, row))
        if not path.is_file():
            missing.append(f"line {line}: {name}")
    if missing:
        raise InputError(
            f"{metadata}: {len(missing)} of {len(rows)} rows name a file that isn't there "
            f"({_some(missing)}); file_name is relative to the metadata file: add the files or remove the "
            f"rows"
        )
    yield from rows


def _read_csv(metadata: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = list(reader.fieldnames or [])
            if "file_name" not in columns or not set(columns) & set(CAPTION_COLUMNS):
                raise InputError(
                    f"{metadata}: expected the columns file_name and text (or caption), got {_some(columns) or 'none'}"
                )
            for row in reader:
                if None in row:  # DictReader's name for the cells beyond the header
                    raise InputError(
                        f"{metadata}, line {reader.line_num}: has more cells than the header; "
                        f'a text with a comma goes in double quotes: clip.mp4,"a dog, running"'
                    )
                yield reader.line_num, dict(row)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{metadata}: can't be read as UTF-8 CSV ({error})") from error


def _read_jsonl(metadata: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    try:
        lines = metadata.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{metadata}: can't be read as UTF-8 ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{metadata}, line {number}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{metadata}, line {number}: expected an object with file_name and text, got {line[:60]}")
        yield number, row


def _caption(row: Mapping[str, object], where: str) -> str:
    """The row's caption on one line; "" where there is none."""
    for key in CAPTION_COLUMNS:
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where}: {key} is {value!r}; expected a string")
        if value and value.strip():
            return " ".join(value.split())
    return ""


def _seconds(row: Mapping[str, object], key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"{where}: {key} is {value!r}; expected seconds >= 0, or nothing")
    return seconds


def _caption_beside(path: Path) -> tuple[str, str]:
    """The caption in `NAME.txt`, on one line, or "" and why there is none."""
    beside = path.with_suffix(".txt")
    try:
        caption = " ".join(beside.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return "", f"no caption: no {beside.name} beside it and no metadata row"
    except (UnicodeDecodeError, OSError) as error:
        return "", f"no caption: {beside.name} can't be read as UTF-8 ({error})"
    return caption, "" if caption else f"no caption: {beside.name} is empty"


def _some(items: list[str], show: int = 3) -> str:
    more = f" and {len(items) - show} more" if len(items) > show else ""
    return ", ".join(items[:show]) + more
