"""MSR-VTT in its three forms: the challenge's JSON, retrieval lists beside it, and the lists of the Hugging Face hub.

    *videodatainfo.json, MSRVTT_data.json     {"videos": [{"video_id", "split"}],
                                               "sentences": [{"video_id", "caption"}]}
    MSRVTT_train.9k.csv, MSRVTT_train.7k.csv  video_id; captions from the JSON
    MSRVTT_JSFUSION_test.csv                  video_id, sentence
    msrvtt_{train_9k,train_7k,test_1k}.json   [{"video_id", "video", "caption": one or a list}]

Start and end times, where there are any, are of the source on YouTube: the files are cut already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contrastive_i2v.data.sources.source import Files, Found, Place, Request, Source
from contrastive_i2v.data.sources.tables import csv_rows, read_json
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.errors import InputError

INFO = ("train_val_videodatainfo.json", "test_videodatainfo.json", "MSRVTT_data.json")
TABLES = {"MSRVTT_train.9k.csv": "train_9k", "MSRVTT_train.7k.csv": "train_7k", "MSRVTT_JSFUSION_test.csv": "test_1k"}
HUB = {f"msrvtt_{split}.json": split for split in ("train_9k", "train_7k", "test_1k")}
SPLITS = ("train", "validate", "test", "train_9k", "train_7k", "test_1k")
FOLDERS = ("TrainValVideo", "TestVideo", "videos/all", "video", "")

Rows = list[tuple[str, object]]
"""(video's file, its caption or captions) of a split."""


def _lists(place: Place) -> list[Path]:
    return place.find(*INFO, *TABLES, *HUB)


def _read(request: Request) -> Found:
    lists = _lists(request.place)
    by_split: dict[str, Rows] = {}
    captions: dict[str, list[str]] = {}
    for file in request.place.beside(*INFO):
        videos, sentences = _info(file)
        for video, split in videos:
            if file in lists:
                by_split.setdefault(split, []).append((f"{video}.mp4", captions.setdefault(video, [])))
        for video, sentence in sentences:
            captions.setdefault(video, []).append(sentence)
    for file in lists:
        if file.name in HUB:
            by_split[HUB[file.name]] = _hub(file)
        elif file.name in TABLES:
            by_split[TABLES[file.name]] = _table(file, captions)
    split = request.choose_split(sorted(by_split, key=lambda name: SPLITS.index(name) if name in SPLITS else -1))
    return Found(_clips(by_split[split], request), split)


def _clips(rows: Rows, request: Request) -> Iterator[Clip | Skipped]:
    files = Files(request.folders(*FOLDERS))
    for name, value in dict(rows).items():  # a video that two lists have, once
        path = files.find(name)
        if path is None:
            yield files.missing(name)
        elif caption := request.caption(value, name):
            yield Clip(path, caption)
        else:
            yield Skipped(path, "no caption")


def _info(file: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(video, split) and (video, sentence) of the challenge's JSON."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected an object with videos and sentences")
    videos = _strings(file, content.get("videos"), ("video_id", "split"))
    return list(videos), list(_strings(file, content.get("sentences"), ("video_id", "caption")))


def _table(file: Path, captions: Mapping[str, Sequence[str]]) -> Rows:
    if TABLES[file.name] == "test_1k":
        return [(f"{video}.mp4", sentence) for _, (video, sentence) in csv_rows(file, ("video_id", "sentence"))]
    videos = [video for _, (video,) in csv_rows(file, ("video_id",))]
    if not captions:
        raise InputError(f"{file}: has no captions; expected {' or '.join(INFO)} beside it")
    return [(f"{video}.mp4", list(captions.get(video, ()))) for video in videos]


def _hub(file: Path) -> Rows:
    content = read_json(file)
    videos = [video for (video,) in _strings(file, content, ("video_id",))]
    return [(str(r.get("video") or f"{v}.mp4"), r.get("caption")) for v, r in zip(videos, content, strict=True)]


def _strings(file: Path, rows: Any, keys: tuple[str, ...]) -> Iterator[Any]:
    """These keys' values of each row. Raises InputError where one isn't a string."""
    if not isinstance(rows, list):
        raise InputError(f"{file}: expected a list of objects with {', '.join(keys)}")
    for number, row in enumerate(rows):
        values = tuple(row.get(key) for key in keys) if isinstance(row, dict) else (None,)
        if not all(isinstance(value, str) for value in values):
            raise InputError(f"{file}: expected the strings {', '.join(keys)} in every row, not so in row {number}")
        yield values


SOURCE = Source(
    name="msr-vtt",
    looks_for=f"{', '.join((*INFO, *TABLES, *HUB))}",
    recognise=lambda place: bool(_lists(place)),
    read=_read,
    takes=("split", "videos"),
)
