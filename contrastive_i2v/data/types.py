"""What the data modules pass to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contrastive_i2v.errors import InputError, one_line


@dataclass(frozen=True, slots=True)
class Images:
    """Image files in the folder `Clip.path`, a frame each, in order."""

    names: tuple[str, ...]
    fps: float = 1.0
    """Frames a second. A pair of images has no time: 1, so that both are valid frames at any usual rate."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A video file in the tar file `Clip.path`, read where it lies."""

    name: str
    offset: int
    """Of its first byte."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """Images in the cells of a row of the parquet file `Clip.path`, a frame each, at 1 a second."""

    group: int
    """Of rows."""
    row: int
    """Of that group."""
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Clip:
    """A captioned stretch of a video: a file, or what `part` says of one."""

    path: Path
    caption: str
    start: float | None = None
    """Seconds; None = the video's first frame."""
    end: float | None = None
    """Seconds; None = the video's last frame."""
    part: Images | TarMember | ParquetRow | None = None
    """Where the frames are, if `path` is not itself their video file."""

    @property
    def where(self) -> Path:
        """The video's own name for messages, groups and results: its path, also where it has none on the disk."""
        if self.part is None:
            return self.path
        if isinstance(self.part, ParquetRow):
            return self.path / f"group {self.part.group} row {self.part.row}"
        return self.path / (self.part.name if isinstance(self.part, TarMember) else self.part.names[0])


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why; named at the end of the run."""

    path: Path
    reason: str

    @classmethod
    def because(cls, path: Path, error: Exception) -> Skipped:
        """For an error whose message may begin with the file's name."""
        return cls(path, str(error).removeprefix(f"{path}: "))


class NoClipLeft(InputError):
    """Not one clip can be used; `skipped` has the reasons, of which the message has the first ones."""

    def __init__(self, skipped: Sequence[Skipped], message: str = "") -> None:
        self.skipped = skipped
        reasons = [f"{one_line(s.path)}: {one_line(s.reason)}" for s in skipped[:5]]
        if len(skipped) > 5:
            reasons.append(f"and {len(skipped) - 5} more")
        super().__init__(message or f"none of the {len(skipped)} clips can be used: {'; '.join(reasons)}")
