"""Reading back what was measured, a clip at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_i2v.evaluation.distribution import Moments
from contrastive_i2v.evaluation.suite.store import load_kept
from contrastive_i2v.evaluation.suite.work import Job
from contrastive_i2v.evaluation.videos import ReferenceClip
from contrastive_i2v.files import digest

ROWS_HELD = 8192
"""Features of one set in memory at most; beyond, moments stream and the rest sees a subset."""


@dataclass(frozen=True)
class MeasuredVideos:
    """The measured videos of one method: N clips, S seeds."""

    jobs: Sequence[Job]
    clips: Sequence[ReferenceClip]

    @property
    def name(self) -> str:
        return self.jobs[0].method.name

    @property
    def stamp(self) -> str:
        """Changes with whatever `read` reads."""
        of_jobs = [[job.shelf.key, [m.key for m in job.measures.values()]] for job in self.jobs]
        return digest([of_jobs, [[job.seed, *map(job.stamp, self.clips)] for job in self.jobs]])

    def has(self, role: str) -> bool:
        return role in self.jobs[0].measures

    def extractor(self, role: str) -> str:
        return self.jobs[0].measures[role].extractor

    def read(self, role: str, clip: ReferenceClip) -> dict[str, Tensor]:
        """What a measure found in a clip's videos, `[S, ...]` each."""
        found = [load_kept(job.features(role, clip), job.stamp(clip)) for job in self.jobs]
        return {name: torch.stack([tensors[name] for tensors in found]) for name in found[0]}

    def each(self, role: str, value: Callable[[Mapping[str, Tensor]], Tensor]) -> Tensor:
        """`value` of each clip's `[S, ...]` tensors, a mean over its seeds: `[N, ...]` float64."""
        return torch.stack([value(self.read(role, clip)).double().mean(dim=0) for clip in self.clips])

    def held(self, role: str, name: str, frames: slice | None) -> int:
        """How many clips' features fit in memory."""
        return max(1, ROWS_HELD // len(self._rows_of(self.clips[0], role, name, frames)))

    def rows(self, role: str, name: str, frames: slice | None, kept: Sequence[int]) -> Tensor:
        """Features `[n, R, d]` of the n clips `kept`: R = S, or S x the number of frames."""
        return torch.stack([self._rows_of(self.clips[index], role, name, frames) for index in kept])

    def by_frame(self, role: str, name: str, kept: Sequence[int]) -> Tensor:
        """Features, flat, `[n, S, F, d]` of the n clips `kept`."""
        return torch.stack([self.read(role, self.clips[index])[name].flatten(2) for index in kept])

    def moments(self, role: str, name: str, frames: slice | None) -> Moments:
        """Moments over all clips, streamed."""
        moments = Moments()
        for start in range(0, len(self.clips), 64):
            batch = [self._rows_of(clip, role, name, frames) for clip in self.clips[start : start + 64]]
            moments.update(torch.cat(batch))
        return moments

    def _rows_of(self, clip: ReferenceClip, role: str, name: str, frames: slice | None) -> Tensor:
        found = self.read(role, clip)[name]  # [S, d] or [S, F, d]
        return found if frames is None else found[:, frames].flatten(0, 1)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced."""
    most = min(count, most)
    return [index * count // most for index in range(most)]
