"""Two lists, line by line: videos.txt (or video.txt) with paths, and prompts.txt (or prompt, captions, caption)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from contrastive_i2v.data.sources.source import Files, Found, Place, Request, Source
from contrastive_i2v.data.sources.tables import read_lines
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.errors import InputError

VIDEOS = ("videos.txt", "video.txt")
PROMPTS = ("prompt.txt", "prompts.txt", "caption.txt", "captions.txt")


def _lists(place: Place) -> tuple[list[Path], list[Path]]:
    if place.file and not place.find(*VIDEOS):
        return [], []
    return place.beside(*VIDEOS), place.beside(*PROMPTS)


def _read(request: Request) -> Found:
    videos, prompts = map(request.one, _lists(request.place))
    names, texts = read_lines(videos), read_lines(prompts)
    if len(names) != len(texts):
        raise InputError(
            f"{request.place.root}: {videos.name} has {len(names)} lines and {prompts.name} {len(texts)}; expected a "
            "caption a video, each on a line of its own"
        )
    return Found(_clips(names, texts, request, prompts.name))


def _clips(names: Sequence[str], texts: Sequence[str], request: Request, prompts: str) -> Iterator[Clip | Skipped]:
    files = Files(request.folders(""))
    for name, text in zip(names, texts, strict=True):
        path = files.find(name.strip())
        if path is None:
            yield files.missing(name)
        elif caption := request.caption(text):
            yield Clip(path, caption)
        else:
            yield Skipped(path, f"no caption: its line of {prompts} is empty")


SOURCE = Source(
    name="two-lists",
    looks_for=f"{' or '.join(VIDEOS)} with {', '.join(PROMPTS)}",
    recognise=lambda place: all(_lists(place)),
    read=_read,
    takes=("videos",),
)
