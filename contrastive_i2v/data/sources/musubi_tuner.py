"""musubi-tuner's dataset configuration: TOML with [general] and [[datasets]], each a folder or JSON lines.

A dataset has video_directory or image_directory (media with captions beside them, caption_extension .txt) or
video_jsonl_file or image_jsonl_file (rows of video_path or image_path, and caption). A path is relative to the working
directory, or else to the file that names it. A video_path may be a folder of frames, at source_fps a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from contrastive_i2v.data.images import IMAGE_EXTENSIONS
from contrastive_i2v.data.sources.folder import is_file, read_caption
from contrastive_i2v.data.sources.source import (
    NO_FILE,
    Found,
    Place,
    Request,
    Source,
    is_text,
    located,
    media_clip,
    media_files,
)
from contrastive_i2v.data.sources.tables import jsonl_rows, read_toml
from contrastive_i2v.data.types import Clip, Images, Skipped
from contrastive_i2v.errors import InputError, one_line

KINDS = ("video_directory", "video_jsonl_file", "image_directory", "image_jsonl_file")


def _recognise(place: Place) -> bool:
    return bool(place.file and place.file.suffix == ".toml" and "datasets" in read_toml(place.file))


def _read(request: Request) -> Found:
    file = request.place.file
    assert file is not None
    config = read_toml(file)
    general, datasets = config.get("general", {}), config.get("datasets")
    tables = [general, *datasets] if isinstance(datasets, list) else []
    if not tables or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{file}: expected [general] and [[datasets]]")
    return Found(
        chain.from_iterable(
            _dataset(f"{file}, dataset {number}", file.parent, {**general, **dataset}, request)
            for number, dataset in enumerate(tables[1:], 1)
        )
    )


def _dataset(where: str, base: Path, options: Mapping[str, Any], request: Request) -> Iterator[Clip | Skipped]:
    kinds = [kind for kind in KINDS if kind in options]
    if len(kinds) != 1 or not isinstance(options[kinds[0]], str):
        raise InputError(f"{where}: expected one of {', '.join(KINDS)}, got {' and '.join(kinds) or 'none'}")
    fps, extension = options.get("source_fps"), options.get("caption_extension", ".txt")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or not fps > 0):
        raise InputError(f"{where}: source_fps is {one_line(fps)}; expected frames a second > 0")
    if not isinstance(extension, str) or not extension.startswith(".") or set(extension) & {"/", "\0"}:
        raise InputError(f"{where}: caption_extension is {one_line(extension)}; expected .txt or alike")
    path = located(options[kinds[0]], base)
    if kinds[0].endswith("jsonl_file"):
        key = kinds[0].replace("jsonl_file", "path")
        for line, row in jsonl_rows(path):
            name = row.get(key)
            if not isinstance(name, str) or not is_text(name) or "\0" in name:
                raise InputError(f"{path}, line {line}: expected a path as {key}, got {one_line(name)}")
            yield _clip(located(name, path.parent), request.caption(row.get("caption")), fps)
    else:
        for media in media_files(path, where):
            try:
                caption = read_caption(media.with_name(media.stem + extension))
            except InputError as error:
                yield Skipped(media, f"no caption: {one_line(error)}")
            else:
                yield _clip(media, caption, fps)


def _clip(path: Path, caption: str, fps: float | None) -> Clip | Skipped:
    try:
        frames = sorted(f.name for f in path.iterdir() if f.suffix.lower() in IMAGE_EXTENSIONS) if path.is_dir() else []
    except OSError as error:
        return Skipped(path, f"can't be listed ({error.strerror})")
    if frames and fps is None:
        return Skipped(path, "a folder of frames, and no source_fps says how many a second")
    if not frames and not is_file(path):
        return Skipped(path, NO_FILE)
    if not caption:
        return Skipped(path, "no caption")
    if frames:
        return Clip(path, caption, part=Images(tuple(frames), float(fps or 1)))
    return media_clip(path, caption)


SOURCE = Source(name="musubi-tuner", looks_for="a .toml file with [[datasets]]", recognise=_recognise, read=_read)
