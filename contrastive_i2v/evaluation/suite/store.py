"""Where an evaluation keeps what is finished: one file a video and one a (video, measure), each whole or absent.

    OUTPUT/frames/METHOD/KEY/CLIP.safetensors              uint8 frames [F, 3, H, W], without loss
    OUTPUT/features/METHOD/KEY/MEASURE/CLIP.safetensors    what a measure found in them
    OUTPUT/videos/METHOD/CLIP.mp4                          the same frames for people
    OUTPUT/videos/METHOD/.key                              JSON: the KEY of these, and the names of the files written

KEY is a hash of what makes a method's videos, MEASURE has one of its network; the stamp inside a file is of the clip.
So a changed model, setting, network or clip finds no file of its own and is made anew: nothing stale is ever read.
Only videos that `.key` lists are ever removed or overwritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from contrastive_i2v.errors import InputError
from contrastive_i2v.files import digest, write_whole

FORMAT = 1
"""Part of every key: raise it when frames or measures come to mean something else."""


@dataclass(frozen=True)
class Shelf:
    """One method's files."""

    output: Path
    method: str
    key: str

    def frames(self, sample: str) -> Path:
        return self.output / "frames" / self.method / self.key / f"{sample}.safetensors"

    def features(self, measure: str, sample: str) -> Path:
        return self.output / "features" / self.method / self.key / measure / f"{sample}.safetensors"

    def video(self, sample: str) -> Path:
        return self.output / "videos" / self.method / f"{sample}.mp4"

    def claim(self, videos: Sequence[Path]) -> None:
        """List videos as this command's own, before they are written: only such are ever removed."""
        listed = self._listed()
        if new := [name for name in map(self._name, videos) if name not in listed]:
            self._list([*listed, *new])

    def check(self, videos: Sequence[Path]) -> None:
        """Raise InputError where a video that is to be written is there already and isn't this command's own."""
        listed = set(self._listed())
        for video in videos:
            if self._name(video) not in listed and os.path.lexists(video):
                raise InputError(
                    f"{video}: is there already and isn't listed in {self._marker} as written by this command, so it "
                    "is left alone; expected no file of this name: move it away, or take another --output"
                )

    @property
    def _marker(self) -> Path:
        return self.output / "videos" / self.method / ".key"

    def _name(self, video: Path) -> str:
        return video.relative_to(self._marker.parent).as_posix()

    def _listed(self) -> list[str]:
        """Names of the videos that this command wrote, none where the list is from before there were any."""
        return _read_marker(self._marker)[1]

    def _list(self, names: Sequence[str]) -> None:
        _write_text(self._marker, json.dumps({"key": self.key, "files": list(names)}) + "\n")


def open_shelf(output: Path, method: str, identity: Mapping[str, object]) -> Shelf:
    """The shelf of a method whose videos `identity` decides, with that written down beside them.

    Videos for people that this command wrote for another identity are removed; their frames stay under their own key.

    Raises:
        InputError: a link leads a folder of the method's out of `output`.
    """
    shelf = Shelf(output, method, digest([FORMAT, identity]))
    for part in ("frames", "features", "videos"):
        folder = output / part / method
        if not folder.resolve().is_relative_to(output.resolve()):
            raise InputError(
                f"{folder}: leads to {folder.resolve()}, outside of {output}; expected a folder inside of it: "
                f"rename the method {method!r}, or remove the link"
            )
    written = json.dumps(identity, indent=1, sort_keys=True, default=str) + "\n"
    _write_text(output / "frames" / method / shelf.key / "made_with.json", written)
    key, listed = _read_marker(shelf._marker)
    if key != shelf.key:
        for name in listed:
            (shelf._marker.parent / name).unlink(missing_ok=True)
        shelf._list([])
    return shelf


def save_tensors(path: Path, tensors: Mapping[str, Tensor], stamp: str) -> None:
    """Write tensors, and the stamp they hold for. Raises InputError naming the file when the disk refuses."""
    whole = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    blob = save(whole, metadata={"stamp": stamp})
    write_whole(path, lambda part: part.write_bytes(blob))


def load_tensors(path: Path, stamp: str) -> dict[str, Tensor] | None:
    """The tensors, or None where there are none for this stamp."""
    return load_file(path) if has_tensors(path, stamp) else None


def load_kept(path: Path, stamp: str) -> dict[str, Tensor]:
    """The tensors of a file that this command has written, or found, before. Raises InputError where it is gone."""
    found = load_tensors(path, stamp)
    if found is None:
        raise InputError(f"{path}: is gone, and was there before; run the command again")
    return found


def metadata_of(path: Path) -> dict[str, str]:
    """What was saved beside the tensors; empty where there is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def has_tensors(path: Path, stamp: str) -> bool:
    """Whether a file for this stamp is there."""
    return metadata_of(path).get("stamp") == stamp


def _read_marker(marker: Path) -> tuple[str, list[str]]:
    """The key of a method's videos, and the names of those that this command wrote."""
    try:
        text = marker.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "", []
    try:
        found = json.loads(text)
        key, names = found["key"], found["files"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return text.strip(), []  # a key alone, as it was written before there was a list
    inside = [n for n in names if isinstance(n, str) and not os.path.isabs(n) and ".." not in Path(n).parts]
    return str(key), inside


def _write_text(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        write_whole(path, lambda part: part.write_text(text))
