"""WebDataset tars, as of video2dataset and OpenVid-1M-wds: NAME.mp4 with NAME.txt, or NAME.json that has a caption.

Videos are read where they lie in the tar, by offset and size. Nothing is unpacked: no name in a tar can lead anywhere.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

from contrastive_i2v.data.sources.source import Found, Request, Source
from contrastive_i2v.data.sources.tables import MAX_CELL
from contrastive_i2v.data.types import Clip, Skipped, TarMember
from contrastive_i2v.data.video import VIDEO_EXTENSIONS
from contrastive_i2v.errors import one_line
from contrastive_i2v.files import parse_json

CAPTION_KEYS = ("caption", "text", "prompt")


def _read(request: Request) -> Found:
    return Found(chain.from_iterable(_tar(tar, request) for tar in request.place.find("*.tar")))


def _tar(tar: Path, request: Request) -> Iterator[Clip | Skipped]:
    """The clips of a tar, and what can't be used of it: up to where it is damaged."""
    videos: dict[str, TarMember] = {}
    captions: dict[str, str] = {}  # by key + extension
    broken = ""
    try:
        end = tar.stat().st_size
        with tarfile.open(tar, "r:") as archive:
            before = -1
            while (member := archive.next()) is not None:
                name = one_line(member.name)
                if not before < member.offset < member.offset_data <= member.offset_data + member.size <= end:
                    broken = f"damaged at {name}"
                    break
                before = member.offset
                key, extension = _split(member.name)
                if extension in VIDEO_EXTENSIONS:
                    if not member.isreg() or member.issparse():
                        yield Skipped(tar / name, "is no regular file")
                    elif key in videos:
                        yield Skipped(tar / name, "a second video of that name")
                    else:
                        videos[key] = TarMember(name, member.offset_data, member.size)
                elif extension in (".txt", ".json") and member.isreg() and member.size <= MAX_CELL:
                    content = archive.extractfile(member)
                    captions[key + extension] = _caption(content.read() if content else b"", extension, request, key)
    except (tarfile.TarError, OSError, ValueError, RecursionError, EOFError, OverflowError) as error:
        broken = f"not a readable tar ({one_line(error)})"
    for key, video in videos.items():
        if caption := captions.get(f"{key}.txt") or captions.get(f"{key}.json"):
            yield Clip(tar, caption, part=video)
        else:
            yield Skipped(tar / video.name, f"no caption: no {PurePosixPath(key).name}.txt or .json beside it has one")
    if broken:
        yield Skipped(tar, broken)


def _split(name: str) -> tuple[str, str]:
    """The key, up to the first dot of the last part, and the extension: `a/b.seg.mp4` is `a/b` and `.seg.mp4`."""
    folder, slash, last = name.rpartition("/")
    key, dot, extension = last.partition(".")
    return folder + slash + key, (dot + extension).lower()


def _caption(content: bytes, extension: str, request: Request, key: str) -> str:
    text = content.decode("utf-8-sig", "replace")
    if extension == ".txt":
        return request.caption(text)
    try:
        row = parse_json(text)
    except ValueError:
        return ""
    value = next((row[name] for name in CAPTION_KEYS if row.get(name)), None) if isinstance(row, dict) else None
    return request.caption(value, key)


SOURCE = Source(
    name="webdataset",
    looks_for=".tar files",
    recognise=lambda place: bool(place.find("*.tar")),
    read=_read,
)
