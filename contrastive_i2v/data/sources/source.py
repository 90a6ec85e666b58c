"""What a dataset format is, and what all of them share: options, splits, captions, looking for files."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from contrastive_i2v.data.images import IMAGE_EXTENSIONS
from contrastive_i2v.data.types import Clip, Images, Skipped
from contrastive_i2v.data.video import VIDEO_EXTENSIONS
from contrastive_i2v.errors import InputError, one_line

Purpose = Literal["train", "validation", "test"]
SPLITS: dict[str, Purpose] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validate", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What datasets call their splits."""
NO_FILE = "no such file"


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How a dataset on the disk is read; docs/data.md has the formats."""

    format: str | None = None
    """The format's name; None = recognised by its files."""
    split: str | None = None
    """The split to read, as the dataset names it; None = the one for the purpose (train, validation, test), where the
    dataset has splits."""
    captions: Literal["first", "random"] = "first"
    """Which one of several captions a clip gets; random is a function of the seed and the clip."""
    videos: Path | None = None
    """The folder that the names in the dataset's lists belong to; None = where the format has it."""
    template: str | None = None
    """File names from a row's keys, for InternVid; None = {YoutubeID}_{Start_timestamp}_{End_timestamp}.mp4"""
    outside: bool = False
    """Whether rows of a folder's metadata may name files outside of it, by an absolute name or `..`."""


class Found(NamedTuple):
    """What a format's reader returns."""

    items: Iterable[Clip | Skipped]
    """In the order of the dataset's lists."""
    split: str | None = None
    """Of a dataset that has splits."""


class Place:
    """A dataset's folder, or one of its lists in it, and what lies there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path if path.is_file() else None
        self.root = _root(path) if self.file else path
        self._listings: dict[str, list[str]] = {}

    def find(self, *patterns: str) -> list[Path]:
        """Files in the root, or with `folder/*.csv` in a folder of it, that match; sorted, without hidden ones. Where
        the path is a list itself, that alone."""
        if self.file:
            return [self.file] if any(self.file.match(pattern.split("/")[-1]) for pattern in patterns) else []
        return self.beside(*patterns)

    def beside(self, *patterns: str) -> list[Path]:
        """The same, also beside a list."""
        found = set()
        for pattern in patterns:
            folder, _, last = pattern.rpartition("/")
            names = fnmatch.filter(self._list(folder), last) if "*" in last else [last]
            found |= {self.root / folder / name for name in names}
        return sorted(path for path in found if path.is_file())

    def _list(self, folder: str) -> list[str]:
        if folder not in self._listings:
            try:
                names = os.listdir(self.root / folder)
            except OSError:
                names = []
            self._listings[folder] = [name for name in names if not name.startswith(".")]
        return self._listings[folder]


class Request(NamedTuple):
    """A dataset to be read, and the options."""

    place: Place
    config: SourceConfig
    seed: int
    purpose: Purpose

    def choose_split(self, available: Sequence[str]) -> str:
        """The split asked for, by the dataset's name or another for the same; else the purpose's, or the only one.

        Raises InputError naming those there are.
        """
        wanted = self.config.split
        kind = self.purpose if wanted is None else SPLITS.get(wanted)
        if wanted in available:
            return str(wanted)
        for name in available:  # in the dataset's order: train before train_9k
            if kind is not None and SPLITS.get(name.split("_")[0]) == kind and (wanted is None or "_" not in name):
                return name
        if wanted is None and len(available) == 1 and SPLITS.get(available[0].split("_")[0]) != "train":
            return available[0]  # held-out clips are never of the training split for want of another
        said = f"split {wanted}" if wanted else f"split for {self.purpose}"
        raise InputError(f"{self.place.path}: has no {said}; expected {' or '.join(available)}")

    def caption(self, value: object, *clip: object) -> str:
        """The caption, or one of several by the config, on one line; "" where there is none."""
        texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        captions = [" ".join(text.split()) for text in texts if isinstance(text, str) and is_text(text)]
        captions = [caption for caption in captions if caption]
        if len(captions) < 2 or self.config.captions == "first":
            return captions[0] if captions else ""
        return pick(captions, self.seed, "caption", *clip)

    def one(self, files: Sequence[Path]) -> Path:
        """The only list of several that a dataset may have. Raises InputError naming them."""
        if len(files) > 1:
            names = ", ".join(str(file.relative_to(self.place.root)) for file in files[:5])
            raise InputError(f"{self.place.path}: holds {len(files)} lists ({names}); give one of them as the path")
        return files[0]

    def folders(self, *names: str) -> list[Path]:
        """Where videos are looked for: these folders of the dataset, in that order, or the config's."""
        return [self.config.videos.expanduser()] if self.config.videos else [self.place.root / name for name in names]


@dataclass(frozen=True)
class Source:
    """A dataset format."""

    name: str
    looks_for: str
    """What it is recognised by, in words."""
    recognise: Callable[[Place], bool]
    read: Callable[[Request], Found]
    takes: tuple[str, ...] = ()
    """The options of SourceConfig, beside format and captions, that it has a use for."""


class Files:
    """Files by their names below some folders, each of which is listed once: a million names cost a few listings, not a
    million questions, and no name leads out of its folder."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [str(folder) for folder in folders]
        self._first = folders[0]  # of a million names without a file, a path for each would take most of the time
        self._listings: dict[tuple[str, str], set[str]] = {}

    def find(self, *names: str) -> Path | None:
        """The first that is there: in the first folder by any of the names, then in the next."""
        for folder in self.folders:
            for name in names:
                below, _, last = name.removeprefix(f"{folder}/").rpartition("/")
                listing = self._listings.get((folder, below))
                if last in (self._list(folder, below) if listing is None else listing):
                    return Path(f"{folder}/{below}/{last}")
        return None

    def missing(self, name: str) -> Skipped:
        """Of a file that `find` has not found."""
        return Skipped(self._first, f"{NO_FILE}: {name}")

    def _list(self, folder: str, below: str) -> set[str]:
        listing: set[str] = set()
        if not below or not {"", ".", ".."} & set(below.split("/")):
            try:
                with os.scandir(f"{folder}/{below}") as entries:
                    listing = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):  # ValueError: a null byte in the name
                pass
        self._listings[folder, below] = listing
        return listing


def media_files(folder: Path, where: str) -> list[Path]:
    """The videos and images of a folder, not of those in it; sorted, without hidden ones.

    Raises InputError beginning with `where`.
    """
    try:
        files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {one_line(folder)} can't be listed ({one_line(error)})") from error
    return sorted(file for file in files if file.suffix.lower() in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS))


def media_clip(path: Path, caption: str) -> Clip:
    """A clip of a video's file, or of one frame, an image's."""
    image = path.suffix.lower() in IMAGE_EXTENSIONS
    return Clip(path.parent, caption, part=Images((path.name,))) if image else Clip(path, caption)


def located(name: str, base: Path) -> Path:
    """A path that a configuration names: relative to the working directory first, then to `base`."""
    path = Path(name).expanduser()
    try:
        return path if path.is_absolute() or path.exists() else base / path
    except (OSError, ValueError):  # a name that none can have
        return base / path


def pick(items: Sequence[str], *parts: object) -> str:
    """One of the items, as a function of the parts."""
    number = hashlib.blake2b(repr(parts).encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return items[int.from_bytes(number, "big") % len(items)]


def split_in(name: str) -> str | None:
    """The split that a file's name says, in its own word."""
    found = [word for word in re.findall("[a-z]+", name.lower()) if word in SPLITS]
    return found[0] if found else None


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it; JSON can have half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _root(file: Path) -> Path:
    """The dataset's folder of one of its lists, which may lie in data/SPLIT or data/SPLIT/partitions."""
    folder = file.parent
    if folder.name == "partitions":
        folder = folder.parent
    return folder.parent.parent if folder.parent.name == "data" and folder.name in SPLITS else folder
