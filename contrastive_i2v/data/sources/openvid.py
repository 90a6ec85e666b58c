"""OpenVid-1M: data/train/OpenVid-1M.csv with video and caption beside its scores; the videos flat in video/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from contrastive_i2v.data.sources.source import Files, Found, Place, Request, Source
from contrastive_i2v.data.sources.tables import csv_columns, csv_rows
from contrastive_i2v.data.types import Clip, Skipped

COLUMNS = ("video", "caption")


def _lists(place: Place) -> list[Path]:
    return [
        file
        for file in place.find("*.csv", "data/train/*.csv")
        if {*COLUMNS, "aesthetic score"} <= set(csv_columns(file))
    ]


def _read(request: Request) -> Found:
    return Found(_clips(request.one(_lists(request.place)), request))


def _clips(file: Path, request: Request) -> Iterator[Clip | Skipped]:
    files = Files(request.folders("video", "videos", ""))
    for line, (video, text) in csv_rows(file, COLUMNS):
        path = files.find(video)
        if path is None:
            yield files.missing(video)
        elif caption := request.caption(text):
            yield Clip(path, caption)
        else:
            yield Skipped(path, f"no caption: {file.name}, line {line}")


SOURCE = Source(
    name="openvid",
    looks_for="a .csv with the columns video, caption, aesthetic score",
    recognise=lambda place: bool(_lists(place)),
    read=_read,
    takes=("videos",),
)
