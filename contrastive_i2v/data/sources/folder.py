"""A folder of captioned videos, in the two layouts that trainers and Hugging Face's folder datasets share.

Either `NAME.txt` lies beside `NAME.mp4`, or a `metadata.csv` (`.jsonl`, `.json`, `.parquet`) in the folder (or in any
folder below it) has a row a clip: `file_name` relative to the metadata file, `text` (or `caption`, `prompt`), and
optionally `start` and `end` in seconds. Several rows may name one video: each is a clip. What video2dataset leaves,
as for Panda-70M, is such a folder too.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path

from contrastive_i2v.data.parquet import parquet_columns, parquet_rows
from contrastive_i2v.data.sources.source import NO_FILE, Found, Source, is_text
from contrastive_i2v.data.sources.tables import MAX_CELL, read_json
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.data.video import VIDEO_EXTENSIONS
from contrastive_i2v.errors import InputError, one_line

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.json", "metadata.parquet")
CAPTION_COLUMNS = ("text", "caption", "prompt")
COLUMNS = ("file_name", *CAPTION_COLUMNS, "start", "end", "clip")
MAX_SECONDS = 1e6
"""The latest start or end: eleven days, which no video lasts, and few enough to count frames of."""


class NoVideos(InputError):
    """A folder that holds no video."""


def read_folder(root: str | Path, *, outside: bool = False) -> tuple[list[Clip], list[Skipped]]:
    """The captioned clips below `root`, sorted by path and then as their metadata rows are, and what was left out:
    videos without a caption, and rows whose file isn't there.

    A metadata row goes before a `NAME.txt`. Hidden files and folders are left alone. No video is opened here.

    Args:
        outside: metadata rows may name files outside of `root`; a link inside of it may lead anywhere.

    Raises InputError for a folder that isn't there, for no clip at all, and for metadata that can't be read, lacks its
    columns or names a file outside; of those NoVideos for a folder that holds none.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise InputError(f"{root}: no such folder; expected a folder of videos with captions")
    if not root.is_dir():
        raise InputError(f"{root}: is a file; expected the folder that holds the videos and their captions")

    files = _walk(root)
    videos = {file for file in files if file.lower().endswith(VIDEO_EXTENSIONS)}
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    described: set[str] = set()
    for metadata in sorted(Path(file) for file in files if file.endswith(METADATA_NAMES)):
        if metadata.name not in METADATA_NAMES:
            continue
        for name, where, row in _rows(metadata, root, outside):
            described.add(name)
            path = Path(name)
            if name not in videos and not is_file(path):
                skipped.append(Skipped(path, f"{NO_FILE}; {where} names it, relative to the metadata file"))
            elif caption := _caption(row, where):
                start, end = _seconds(row, "start", where), _seconds(row, "end", where)
                if start is not None and end is not None and start >= end:
                    raise InputError(f"{where}: start = {start:g} s is not before end = {end:g} s")
                clips.append(Clip(path, caption, start, end))
            else:
                skipped.append(Skipped(path, f"no caption: {where} has no text"))
    for path in map(Path, sorted(videos - described)):
        caption, reason = _caption_beside(path)
        if caption:
            clips.append(Clip(path, caption))
        else:
            skipped.append(Skipped(path, reason))

    if not clips and not skipped:
        raise NoVideos(f"{root}: holds no videos; looked in it and below for {', '.join(VIDEO_EXTENSIONS)}")
    if not clips:
        missing = sum(s.reason.startswith(NO_FILE) for s in skipped)
        raise InputError(
            f"{root}: none of its {len(skipped)} videos has a caption "
            f"({_some([os.path.relpath(s.path, root) for s in skipped])}); put the caption of NAME.mp4 into "
            f"NAME.txt beside it, or write a metadata.csv with the columns file_name,text"
            f"{f'; {missing} of them are not there, though metadata names them' if missing else ''}"
        )
    return sorted(clips, key=lambda c: c.path.as_posix()), sorted(skipped, key=lambda s: s.path.as_posix())


def _walk(root: Path) -> list[str]:
    """Files below `root` that aren't hidden; linked folders are followed, each real folder once. Texts, since a million
    paths would take most of the time."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: can't be listed ({error.strerror})") from error

    files: list[str] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(s for s in subfolders if not s.startswith("."))
        if real not in seen:
            inside = os.path.join(folder, "")
            files += [inside + n for n in names if not n.startswith(".")]
        seen.add(real)
    return files


def _rows(metadata: Path, root: Path, outside: bool) -> Iterator[tuple[str, str, Mapping[str, object]]]:
    """The rows of a metadata file as (video, "file, line n", row)."""
    folder, inside = os.path.abspath(metadata.parent), os.path.join(root, "")
    within = os.path.join(os.path.abspath(root), "")
    for line, row in read_rows(metadata, captions=True):
        where = f"{metadata}, line {line}"
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: expected the name of a video as file_name, got {_short(name)}")
        if not any(key in row for key in CAPTION_COLUMNS):
            raise InputError(f"{where}: expected the key text (or caption), got {_some(list(row))}")
        path = os.path.normpath(os.path.join(folder, name.strip()))
        if path.startswith(within) or path == within[:-1]:
            path = inside + path[len(within) :]  # as a walk names it
        elif outside:
            path = os.path.normpath(metadata.parent / name.strip())
        else:
            raise InputError(
                f"{where}: file_name is {_short(name)}, which lies outside of {root}; expected a file in it: move or "
                "link the video into the folder, or allow it by source.outside"
            )
        yield path, where, row


def read_rows(metadata: Path, *, captions: bool = False) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The rows of a metadata file with the line each ends on, or its number; blank lines are left out.

    Args:
        captions: the columns of a CSV must be those that `read_folder` needs.

    Raises:
        InputError: the file can't be read, or a line of it; it names the line.
    """
    if not is_file(metadata):  # a pipe or a device may never end
        raise InputError(f"{metadata}: is no regular file; expected rows of captions")
    if metadata.suffix == ".parquet":
        columns = [name for name in parquet_columns(metadata) if name in COLUMNS]
        yield from ((number, cells) for number, (_, _, cells) in enumerate(parquet_rows(metadata, columns), 1))
        return
    if metadata.suffix == ".json":
        rows = read_json(metadata)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{metadata}: expected a list of objects with file_name and text")
        yield from enumerate(rows, 1)
        return
    try:
        content = metadata.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{metadata}, line {line}: can't be read as UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{metadata}: can't be read ({error.strerror or error})") from error
    yield from _parse_csv(metadata, text, captions) if metadata.suffix == ".csv" else _parse_jsonl(metadata, text)


def _csv_lines(metadata: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The line each row ends on, and its cells."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    cells: list[str] | None = []
    while cells is not None:
        if len(cells) > 1 or any(map(str.strip, cells)):
            yield reader.line_num, cells
        before = csv.field_size_limit(MAX_CELL)  # of the whole process, so never while others run
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{metadata}, line {reader.line_num}: can't be read as UTF-8 CSV ({error})") from error
        finally:
            csv.field_size_limit(before)


def _parse_csv(metadata: Path, text: str, captions: bool) -> Iterator[tuple[int, Mapping[str, object]]]:
    lines = _csv_lines(metadata, text)
    _, columns = next(lines, (0, []))
    if captions and ("file_name" not in columns or not set(columns) & set(CAPTION_COLUMNS)):
        raise InputError(
            f"{metadata}: expected the columns file_name and text (or caption), got {_some(columns) or 'none'}"
        )
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise InputError(f"{metadata}: has the column {_short(twice[0])} twice; expected each once: rename one")
    for number, cells in lines:
        if len(cells) > len(columns):
            raise InputError(
                f"{metadata}, line {number}: has more cells than the header; "
                f'a text with a comma goes in double quotes: clip.mp4,"a dog, running"'
            )
        yield number, dict(zip_longest(columns, cells))


def _parse_jsonl(metadata: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise InputError(
                f"{metadata}, line {number}: is nested too deeply; expected an object with file_name and text"
            ) from error
        except ValueError as error:  # not JSON, or a number of thousands of digits
            raise InputError(f"{metadata}, line {number}: is not JSON ({one_line(error)})") from error
        if not isinstance(row, dict):
            raise InputError(
                f"{metadata}, line {number}: expected an object with file_name and text, got {_short(row)}"
            )
        yield number, row


def is_file(path: Path) -> bool:
    """Whether there is such a file; no error for a name that none can have."""
    try:
        return path.is_file()
    except OSError:  # a name longer than names can be
        return False


def _caption(row: Mapping[str, object], where: str) -> str:
    """The row's caption on one line; "" where there is none."""
    for key in CAPTION_COLUMNS:
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where}: {key} is {_short(value)}; expected a string")
        if value and value.strip():
            if not is_text(value):
                raise InputError(
                    f"{where}: {key} is {_short(value)}, half of a surrogate pair in it; expected text that UTF-8 can "
                    "hold: write the character whole"
                )
            return " ".join(value.split())
    return ""


def _seconds(row: Mapping[str, object], key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= MAX_SECONDS:
        raise InputError(f"{where}: {key} is {_short(value)}; expected seconds >= 0 and <= {MAX_SECONDS:g}, or nothing")
    return seconds


def _caption_beside(path: Path) -> tuple[str, str]:
    """The caption in `NAME.txt`, on one line, or "" and why there is none."""
    beside = path.with_suffix(".txt")
    if not os.path.lexists(beside):
        return "", f"no caption: no {beside.name} beside it and no metadata row"
    try:
        caption = read_caption(beside)
    except InputError as error:
        return "", f"no caption: {str(error).replace(f'{beside}:', beside.name, 1)}"
    return caption, "" if caption else f"no caption: {beside.name} is empty"


def read_caption(file: Path) -> str:
    """The caption that a text file holds, on one line. Raises InputError naming the file."""
    if not is_file(file):
        raise InputError(f"{file}: is no regular file; expected a text")
    try:
        if file.stat().st_size > MAX_CELL:
            raise InputError(f"{file}: holds {file.stat().st_size} bytes; expected a caption, at most {MAX_CELL} bytes")
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file}: can't be read as UTF-8 ({error})") from error


def _some(items: list[str], show: int = 3) -> str:
    items = [item if len(item) <= 80 and item.isprintable() else _short(item) for item in items]
    more = f" and {len(items) - show} more" if len(items) > show else ""
    return ", ".join(items[:show]) + more


def _short(value: object) -> str:
    """The value in a message: on one line, and not its thousands of characters."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 60
    return shown.repr(value)


SOURCE = Source(
    name="folder",
    looks_for=f"{' or '.join(METADATA_NAMES)}",
    recognise=lambda place: bool(place.find(*METADATA_NAMES)),
    read=lambda request: Found(chain(*read_folder(request.place.root, outside=request.config.outside))),
    takes=("outside",),
)
