"""Panda-70M's CSV beside whole source videos, VIDEOID.mp4: a row a video, with lists of bounds and captions.

What its downloader leaves, clips cut already with captions beside them, is a folder (sources/folder.py).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path

from contrastive_i2v.data.sources.source import Files, Found, Place, Request, Source, split_in
from contrastive_i2v.data.sources.tables import csv_columns, csv_rows
from contrastive_i2v.data.types import Clip, Skipped

COLUMNS = ("videoID", "timestamp", "caption")


def _lists(place: Place) -> list[Path]:
    return [file for file in place.find("*.csv") if set(COLUMNS) <= set(csv_columns(file))]


def _read(request: Request) -> Found:
    splits: dict[str, list[Path]] = {}
    for file in _lists(request.place):
        splits.setdefault(split_in(file.stem) or "training", []).append(file)
    split = request.choose_split(sorted(splits))
    file = request.one(splits[split])
    return Found(_clips(file, request), split)


def _clips(file: Path, request: Request) -> Iterator[Clip | Skipped]:
    files = Files(request.folders("videos", ""))
    for line, (video, bounds, texts) in csv_rows(file, COLUMNS):
        name = f"{video}.mp4"
        path = files.find(name)
        if path is None:
            yield files.missing(name)
            continue
        spans, captions = _literal(bounds), _literal(texts)
        if not spans or len(spans) != len(captions):
            reason = f"{file.name}, line {line}: expected lists of as many timestamps as captions"
            yield Skipped(path, reason)
            continue
        for span, text in zip(spans, captions, strict=True):
            start, end = map(_seconds, span) if isinstance(span, list) and len(span) == 2 else (math.nan, math.nan)
            caption = request.caption(text)
            if start < end and caption:
                yield Clip(path, caption, start, end)
            else:
                reason = "expected [start, end]" if caption else "no caption"
                yield Skipped(path, f"{reason}: {file.name}, line {line}")


def _literal(text: str) -> list[object]:
    """The list that a cell holds; [] where it holds none."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return value if isinstance(value, list) else []


def _seconds(time: object) -> float:
    """Of `0:00:18.180`; NaN of anything else."""
    try:
        hours, minutes, seconds = str(time).split(":")
        value = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except (ValueError, OverflowError):
        return math.nan
    return value if 0 <= value < math.inf else math.nan


SOURCE = Source(
    name="panda-70m",
    looks_for=f"a .csv with the columns {', '.join(COLUMNS)}",
    recognise=lambda place: bool(_lists(place)),
    read=_read,
    takes=("split", "videos"),
)
