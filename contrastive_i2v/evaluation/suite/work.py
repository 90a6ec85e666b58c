"""The long part of an evaluation: make every video, take every measure of it, keep both; what is done is passed over.

Clips are handled a batch at a time and nothing but the batch is in memory, so the number of clips doesn't matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.data.examples import SKIPPED, write_skipped
from contrastive_i2v.data.types import Skipped
from contrastive_i2v.data.video import VideoError, write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.generators import Batch, Generator, Method, true_videos
from contrastive_i2v.evaluation.suite.measures import Measure
from contrastive_i2v.evaluation.suite.store import Shelf, has_tensors, load_kept, load_tensors, open_shelf, save_tensors
from contrastive_i2v.evaluation.videos import ReferenceClip, ReferenceSet, none_left, read_true_frames
from contrastive_i2v.files import digest


@dataclass(frozen=True)
class Job:
    """The videos of one method and seed."""

    method: Method
    seed: int | None
    """None where nothing is drawn."""
    shelf: Shelf
    measures: Mapping[str, Measure]
    """By role."""

    def sample(self, clip: ReferenceClip) -> str:
        """File name of a clip's frames and features."""
        return clip.name if self.seed is None else f"{clip.name}.seed{self.seed}"

    def stamp(self, clip: ReferenceClip) -> str:
        return digest([clip.stamp, self.method.stamp(clip)])

    def frames(self, clip: ReferenceClip) -> Path:
        return self.shelf.frames(self.sample(clip))

    def features(self, role: str, clip: ReferenceClip) -> Path:
        return self.shelf.features(self.measures[role].key, self.sample(clip))

    def video(self, clip: ReferenceClip) -> Path:
        """The mp4 for people: NAME.mp4, and NAME.seed1.mp4 for seeds after the first."""
        is_first = self.seed is None or self.seed == self.method.seeds[0]
        return self.shelf.video(clip.name if is_first else self.sample(clip))

    def keep(self, clip: ReferenceClip, frames: Tensor) -> None:
        """Write a clip's frames, uint8 `[F, 3, H, W]`."""
        self.video(clip).unlink(missing_ok=True)  # of older frames
        save_tensors(self.frames(clip), {"frames": frames}, self.stamp(clip))

    def done(self, clip: ReferenceClip) -> bool:
        files = [self.frames(clip), *(self.features(role, clip) for role in self.measures)]
        return self.video(clip).is_file() and all(has_tensors(file, self.stamp(clip)) for file in files)


@dataclass
class Work:
    """Every video and measure of an evaluation; the truth is the first job."""

    output: Path
    reference: ReferenceSet
    """When `run` has read the true videos, without the clips that broke."""
    methods: Sequence[Method]
    measures: Mapping[str, Measure]
    batch_size: int = 8
    progress: bool = True
    jobs: dict[str, list[Job]] = field(init=False)
    """By the method's name, one a seed."""
    seconds: dict[str, float] = field(init=False, default_factory=dict)
    """Where this run's time went: by method, and by "making" and the measures' roles."""

    def __post_init__(self) -> None:
        truth = true_videos(self.reference)
        own = {role: measure for role, measure in self.measures.items() if not measure.against_truth}
        self.jobs = {truth.name: [Job(truth, None, self._shelf(truth), own)]}
        for method in self.methods:
            shelf = self._shelf(method)
            self.jobs[method.name] = [Job(method, seed, shelf, self.measures) for seed in method.seeds or (None,)]

    @property
    def truth(self) -> Job:
        return next(iter(self.jobs.values()))[0]

    def run(self, finished: Callable[[Method], None] = lambda method: None) -> None:
        """Do what isn't done. Interrupted at any point, it goes on with the same batch when run again.

        Args:
            finished: called when all videos of a method, and all of the truth, are measured.

        Raises:
            InputError: a file that isn't this command's own lies where a video goes (before any work), what the
                generators raise, features that aren't finite (naming the video), or a file that can't be written.
        """
        clips = self.reference.clips
        jobs = [job for of_method in self.jobs.values() for job in of_method]
        pending = [[clip for clip in clips if not job.done(clip)] for job in jobs]
        for job, missing in zip(jobs, pending, strict=True):  # before any work
            job.shelf.check([job.video(clip) for clip in missing])
        total, todo = len(clips) * len(jobs), sum(map(len, pending))
        last = {job.method.name: job for job in jobs[1:]}  # of each method, the job of its last seed
        bar = tqdm(total=total, initial=total - todo, unit="video", disable=not self.progress, smoothing=0.05)
        with bar:
            broken = self._keep_truth(pending[0], bar)
            bar.total = total - len(broken) * len(jobs)
            for job, missing in zip(jobs, pending, strict=True):
                missing = [clip for clip in missing if clip not in broken]
                bar.set_description(job.method.name)
                generator: list[Generator] = []
                for start in range(0, len(missing), self.batch_size):
                    batch = missing[start : start + self.batch_size]
                    with self.clock(job.method.name):
                        videos = self._get_videos(job, batch, generator, bar)
                        self._measure(job, batch, videos, bar)
                    bar.update(len(batch))
                if last.get(job.method.name) is job:
                    finished(job.method)
            bar.set_description("done")
            bar.set_postfix_str("")

    def _keep_truth(self, missing: Sequence[ReferenceClip], bar: tqdm[NoReturn]) -> list[ReferenceClip]:
        """Decode and keep the true videos; returns the clips whose file opens and breaks later.

        Those are left out of `reference`, with the reason. Raises NoClipLeft where no other is left.
        """
        broken, skipped = [], list(self.reference.skipped)
        bar.set_description(self.truth.method.name)
        with self.clock(self.truth.method.name), self.clock("making"):
            for clip in missing:
                if not has_tensors(self.truth.frames(clip), self.truth.stamp(clip)):
                    try:
                        frames = read_true_frames(clip, self.reference.size)
                    except VideoError as error:
                        broken.append(clip)
                        skipped.append(Skipped.because(clip.clip.where, error))
                        continue
                    self.truth.keep(clip, frames)
        clips = [clip for clip in self.reference.clips if clip not in broken]
        self.reference = replace(self.reference, clips=clips, skipped=skipped)
        write_skipped(self.output / SKIPPED, skipped)
        if not clips:
            raise none_left(self.reference.folder, skipped)
        return broken

    def _get_videos(
        self, job: Job, clips: Sequence[ReferenceClip], generator: list[Generator], bar: tqdm[NoReturn]
    ) -> dict[str, Tensor]:
        """uint8 `[F, 3, H, W]` of each clip: read where it is kept, made and kept where it isn't."""
        kept = {clip.name: load_tensors(job.frames(clip), job.stamp(clip)) for clip in clips}
        videos = {name: found["frames"] for name, found in kept.items() if found is not None}
        if missing := [clip for clip in clips if clip.name not in videos]:
            with self.clock("making"):
                if not generator:  # loaded when the first video is missing
                    bar.set_postfix_str("loading")
                    generator.append(job.method.load())
                made = generator[0](
                    Batch(missing, self._true, self.reference.frames, job.seed or 0, bar.set_postfix_str)
                )
            for clip, frames in zip(missing, made, strict=True):
                job.keep(clip, frames)
                videos[clip.name] = frames
        job.shelf.claim([job.video(clip) for clip in clips])
        for clip in clips:
            if not job.video(clip).is_file():
                write_video(job.video(clip), videos[clip.name], self.reference.frame_rate)
        return videos

    def _measure(
        self, job: Job, clips: Sequence[ReferenceClip], videos: Mapping[str, Tensor], bar: tqdm[NoReturn]
    ) -> None:
        truth = {clip.name: self._true(clip) for clip in clips}
        for role, measure in job.measures.items():
            missing = [clip for clip in clips if not has_tensors(job.features(role, clip), job.stamp(clip))]
            if not missing:
                continue
            bar.set_postfix_str(role)
            with self.clock(role), torch.no_grad():
                ours, true = (_pixels([of[clip.name] for clip in missing]) for of in (videos, truth))
                try:
                    found = measure.compute(ours, true, [clip.caption for clip in missing])
                except ValueError as error:
                    names = ", ".join(str(job.video(clip)) for clip in missing)
                    raise InputError(f"{names}: {measure.key} can't take a measure of them: {error}") from error
                for row, clip in enumerate(missing):
                    tensors = {name: values[row] for name, values in found.items()}
                    _check_finite(tensors, measure, job.video(clip))
                    save_tensors(job.features(role, clip), tensors, job.stamp(clip))

    def _true(self, clip: ReferenceClip) -> Tensor:
        """The true video, uint8 `[F, 3, H, W]`, kept since the first job."""
        return load_kept(self.truth.frames(clip), self.truth.stamp(clip))["frames"]

    def _shelf(self, method: Method) -> Shelf:
        return open_shelf(self.output, method.name, {**self.reference.setting, **method.identity})

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `seconds[name]`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def _check_finite(tensors: Mapping[str, Tensor], measure: Measure, video: Path) -> None:
    for name, values in tensors.items():
        bad = ~torch.isfinite(values) if measure.finite else torch.isnan(values)
        if bad.any():
            raise InputError(
                f"{video}: {int(bad.sum())} of the {values.numel()} {name} that {measure.key} finds in it are NaN or "
                "infinite; check that network's weights, or leave it out"
            )


def _pixels(videos: Sequence[Tensor]) -> Tensor:
    """uint8 `[F, 3, H, W]`, B times -> `[B, F, 3, H, W]` in [-1, 1]."""
    return torch.stack(list(videos)).float() / 127.5 - 1
