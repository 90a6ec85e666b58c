"""WebVid: a CSV with videoid, name (the caption) and page_dir; videos/PAGE_DIR/VIDEOID.mp4, or VIDEOID.mp4 flat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from contrastive_i2v.data.sources.source import Files, Found, Place, Request, Source, split_in
from contrastive_i2v.data.sources.tables import csv_columns, csv_rows
from contrastive_i2v.data.types import Clip, Skipped

COLUMNS = ("videoid", "page_dir", "name")


def _lists(place: Place) -> list[Path]:
    files = place.find("*.csv", *(f"data/{split}/partitions/*.csv" for split in ("train", "val")))
    return [file for file in files if set(COLUMNS) <= set(csv_columns(file))]


def _split_of(file: Path) -> str:
    folder = file.parent.parent.name if file.parent.name == "partitions" else ""
    return folder or split_in(file.stem) or "train"


def _read(request: Request) -> Found:
    lists = _lists(request.place)
    split = request.choose_split(sorted({_split_of(file) for file in lists}))
    lists = [file for file in lists if _split_of(file) == split]
    if any(file.parent.name != "partitions" for file in lists):
        lists = [request.one(lists)]
    return Found(_clips(lists, request), split)


def _clips(lists: Sequence[Path], request: Request) -> Iterator[Clip | Skipped]:
    files = Files(request.folders("videos", ""))
    for file in lists:
        for line, (video, page, name) in csv_rows(file, COLUMNS):
            below = f"{page}/{video}.mp4"
            path = files.find(below, f"{video}.mp4")
            if path is None:
                yield files.missing(below)
            elif caption := request.caption(name):
                yield Clip(path, caption)
            else:
                yield Skipped(path, f"no caption: {file.name}, line {line}")


SOURCE = Source(
    name="webvid",
    looks_for=f"a .csv with the columns {', '.join(COLUMNS)}",
    recognise=lambda place: bool(_lists(place)),
    read=_read,
    takes=("split", "videos"),
)
