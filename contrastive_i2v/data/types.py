"""What the data modules pass to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contrastive_i2v.errors import InputError


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


class NoClipLeft(InputError):
    """Not one clip can be used; `skipped` has the reasons, of which the message has the first ones."""

    def __init__(self, skipped: Sequence[Skipped], message: str = "") -> None:
        self.skipped = skipped
        reasons = [f"{s.path}: {s.reason}" for s in skipped[:5]] + [f"and {len(skipped) - 5} more"] * (len(skipped) > 5)
        super().__init__(message or f"none of the {len(skipped)} clips can be used: {'; '.join(reasons)}")
