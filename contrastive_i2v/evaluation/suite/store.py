"""Where an evaluation keeps what is finished: one file a video and one a (video, measure), each whole or absent.

    OUTPUT/frames/METHOD/KEY/CLIP.safetensors              uint8 frames [F, 3, H, W], without loss
    OUTPUT/features/METHOD/KEY/MEASURE/CLIP.safetensors    what a measure found in them
    OUTPUT/videos/METHOD/CLIP.mp4                          the same frames for people

KEY is a hash of what makes a method's videos, MEASURE has one of its network; the stamp inside a file is of the clip.
So a changed model, setting, network or clip finds no file of its own and is made anew: nothing stale is ever read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def open_shelf(output: Path, method: str, identity: Mapping[str, object]) -> Shelf:
    """The shelf of a method whose videos `identity` decides, with that written down beside them.

    Videos for people that another identity made are removed; its frames stay under their own key.
    """
    shelf = Shelf(output, method, digest([FORMAT, identity]))
    written = json.dumps(identity, indent=1, sort_keys=True, default=str) + "\n"
    _write_text(output / "frames" / method / shelf.key / "made_with.json", written)
    marker = output / "videos" / method / ".key"
    if not marker.is_file() or marker.read_text() != shelf.key:
        for video in marker.parent.glob("*.mp4"):
            video.unlink()
        _write_text(marker, shelf.key)
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


def _write_text(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        write_whole(path, lambda part: part.write_text(text))
