"""InternVid: JSON lines with YoutubeID, Start_timestamp, End_timestamp and Caption; the clips are cut already.

The lists name no files: a row's is `video_path` where a downloader has added one, else made by a template.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from contrastive_i2v.data.sources.source import Files, Found, Place, Request, Source
from contrastive_i2v.data.sources.tables import jsonl_keys, jsonl_rows
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.errors import InputError

KEYS = {"YoutubeID", "Start_timestamp", "Caption"}
TEMPLATE = "{YoutubeID}_{Start_timestamp}_{End_timestamp}.mp4"


def _lists(place: Place) -> list[Path]:
    return [file for file in place.find("*.jsonl") if set(jsonl_keys(file)) >= KEYS]


def _read(request: Request) -> Found:
    return Found(_clips(request.one(_lists(request.place)), request))


def _clips(file: Path, request: Request) -> Iterator[Clip | Skipped]:
    template = request.config.template or TEMPLATE
    files = Files(request.folders("videos", ""))
    for line, row in jsonl_rows(file):
        name = row.get("video_path")
        if not isinstance(name, str):
            try:
                name = template.format_map(row)
            except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
                raise InputError(f"{file}, line {line}: template {template}: not a row's keys ({error!r})") from error
        path = files.find(name)
        if path is None:
            yield files.missing(name)
        elif caption := request.caption(row.get("Caption")):
            yield Clip(path, caption)
        else:
            yield Skipped(path, f"no caption: {file.name}, line {line}")


SOURCE = Source(
    name="internvid",
    looks_for=f"a .jsonl with the keys {', '.join(sorted(KEYS))}",
    recognise=lambda place: bool(_lists(place)),
    read=_read,
    takes=("videos", "template"),
)
