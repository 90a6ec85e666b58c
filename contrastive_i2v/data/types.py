"""What the data modules pass to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """A captioned stretch of a video file."""

    path: Path
    caption: str
    start: float | None = None
    """Seconds; None = the file's first frame."""
    end: float | None = None
    """Seconds; None = the file's last frame."""


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why; named at the end of the run."""

    path: Path
    reason: str

    @classmethod
    def because(cls, path: Path, error: Exception) -> Skipped:
        """For an error whose message may begin with the file's name."""
        return cls(path, str(error).removeprefix(f"{path}: "))
