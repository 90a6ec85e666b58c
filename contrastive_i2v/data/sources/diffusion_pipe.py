"""diffusion-pipe's dataset configuration: TOML with [[directory]], each a path to media with NAME.txt beside them.

As there, a medium without a caption is trained on with an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from contrastive_i2v.data.sources.folder import read_caption
from contrastive_i2v.data.sources.source import Found, Place, Request, Source, located, media_clip, media_files
from contrastive_i2v.data.sources.tables import read_toml
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.errors import InputError, one_line


def _recognise(place: Place) -> bool:
    return bool(place.file and place.file.suffix == ".toml" and "directory" in read_toml(place.file))


def _read(request: Request) -> Found:
    file = request.place.file
    assert file is not None
    directories = read_toml(file)["directory"]
    if not isinstance(directories, list) or not all(isinstance(one, dict) for one in directories):
        raise InputError(f"{file}: expected [[directory]]")
    return Found(_clips(file, directories))


def _clips(file: Path, directories: Sequence[Mapping[str, object]]) -> Iterator[Clip | Skipped]:
    for number, directory in enumerate(directories, 1):
        path, where = directory.get("path"), f"{file}, directory {number}"
        if not isinstance(path, str):
            raise InputError(f"{where}: expected a folder as path, got {one_line(path)}")
        for media in media_files(located(path, file.parent), where):
            text = media.with_suffix(".txt")
            try:
                yield media_clip(media, read_caption(text) if text.exists() else "")
            except InputError as error:
                yield Skipped(media, f"no caption: {one_line(error)}")


SOURCE = Source(name="diffusion-pipe", looks_for="a .toml file with [[directory]]", recognise=_recognise, read=_read)
