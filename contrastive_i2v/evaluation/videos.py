"""The true videos of an evaluation, and finished videos that answer them: which frames of which file, as uint8.

A clip's true video is the first F valid frames (`data.frames.valid_frames`: so many a second, whatever the file's
rate), centre-cropped and resized. Nothing is held in memory but the list of clips; frames are read when asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from contrastive_i2v.data.frames import FramesConfig, skip_reason, valid_frames
from contrastive_i2v.data.reading import hash_clip, probe_clip, read_clip
from contrastive_i2v.data.sources import SourceConfig, read
from contrastive_i2v.data.sources.folder import METADATA_NAMES, is_file, read_rows
from contrastive_i2v.data.sources.source import Purpose
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.data.video import (
    VIDEO_EXTENSIONS,
    VideoError,
    VideoInfo,
    as_size,
    probe,
    read_frames,
    resize_frames,
    to_uint8,
)
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import digest
from contrastive_i2v.system import Size

MIME_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
"""What browsers play, by the end of the name."""


@dataclass(frozen=True)
class ReferenceClip:
    """One true video: a captioned stretch of a file, and which of its frames are shown."""

    name: str
    """Its path below the folder, without the suffix; slashes become dashes. Unique within the set."""
    clip: Clip
    info: VideoInfo
    indices: tuple[int, ...]
    """F native frame indices."""
    content: str
    """Hash of the file."""

    @property
    def caption(self) -> str:
        return self.clip.caption

    @property
    def stamp(self) -> str:
        """Changes with the file, the frames taken from it or the caption; not with where the file lies."""
        return digest([self.content, self.indices, self.caption])


@dataclass(frozen=True)
class ReferenceSet:
    """The clips that every method is evaluated on, in order."""

    folder: Path
    clips: list[ReferenceClip]
    frames: int
    """F, the given first frame included."""
    size: Size
    frame_rate: float
    """Frames a second."""
    skipped: list[Skipped]
    """Videos without a caption, clips shorter than F frames, and files that can't be decoded."""

    @property
    def setting(self) -> dict[str, str]:
        """What every method's videos depend on beside the clip."""
        height, width = self.size
        return {
            "frames": str(self.frames),
            "resolution": str(height) if height == width else f"{height}x{width}",
            "frame_rate": f"{self.frame_rate:g} a second",
        }


def read_reference_set(
    folder: Path,
    *,
    frames: int,
    resolution: int | Size,
    frame_rate: float = 5.0,
    limit: int | None = None,
    source: SourceConfig | None = None,
    purpose: Purpose = "test",
) -> ReferenceSet:
    """The captioned clips of a dataset that hold `frames` frames at `frame_rate` a second; the first `limit` of them.

    Clips that are too short, or whose file can't be opened, are left out, with the reason.

    Args:
        source: how the dataset is read.
        purpose: which split, where it has some and `source` says none.

    Raises:
        InputError: what `sources.read` raises.
        NoClipLeft: no clip can be opened and is long enough.
    """
    if frames < 2:
        raise InputError(f"frames: expected at least 2, the given one and a generated one, got {frames}")
    config = FramesConfig(frame_rate=frame_rate, max_seconds=math.inf)
    dataset = read(folder, source, purpose=purpose)
    skipped = dataset.skipped
    clips: list[ReferenceClip] = []
    names: dict[str, int] = {}
    for clip in dataset.clips:
        if limit is not None and len(clips) == limit:
            break
        try:
            info = probe_clip(clip)
        except VideoError as error:
            skipped.append(Skipped.because(clip.where, error))
            continue
        reason = skip_reason(info, clip, config)
        indices = () if reason else tuple(valid_frames(info, clip, config)[:frames])
        if len(indices) < frames:
            reason = reason or f"holds {len(indices)} frames at {frame_rate:g} a second, not {frames}"
            skipped.append(Skipped(clip.where, reason))
            continue
        name = _name(clip.where, folder)
        names[name] = names.get(name, 0) + 1
        name += f"-{names[name]}" * (names[name] > 1)
        clips.append(ReferenceClip(name, clip, info, indices, hash_clip(clip)))
    if not clips:
        raise none_left(Path(folder), skipped)
    return ReferenceSet(Path(folder), clips, frames, as_size(resolution), frame_rate, skipped)


def none_left(folder: Path, skipped: Sequence[Skipped]) -> NoClipLeft:
    """The error of a folder that has nothing to evaluate."""
    first = skipped[0]
    return NoClipLeft(
        skipped,
        f"{folder}: none of its {len(skipped)} clips can be evaluated, the first: {first.path.name}: {first.reason}; "
        "take fewer --frames, a higher --frame-rate, or longer videos",
    )


def read_true_frames(clip: ReferenceClip, size: Size) -> Tensor:
    """uint8 `[F, 3, height, width]`. Raises VideoError naming the file."""
    return to_uint8(resize_frames(read_clip(clip.clip, clip.indices), size))


def match_videos(folder: Path, clips: Sequence[ReferenceClip]) -> tuple[dict[str, Path], list[Path]]:
    """The finished video of each clip, by the clip's name, and the videos that belong to none.

    A video belongs to the clip whose name is its path below `folder` without the suffix (as this package writes
    them), or, where no two clips share it, whose file has the same stem. A `metadata.csv` / `metadata.jsonl` with
    `file_name` and `clip` (name or stem of the clip) goes before that.

    Raises:
        InputError: no such folder, no videos in it, metadata that names what isn't there, or clips without a video.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected finished videos, one for each clip")
    videos = sorted(f for f in folder.rglob("*") if f.suffix.lower() in VIDEO_EXTENSIONS and not f.name.startswith("."))
    if not videos:
        raise InputError(f"{folder}: holds no videos; looked in it and below for {', '.join(VIDEO_EXTENSIONS)}")
    by_name = {_name(video, folder): video for video in videos}
    by_stem = {video.stem: video for video in videos}
    by_clip = {Path(clip).with_suffix("").as_posix(): video for clip, video in _metadata(folder).items()}
    stems = [clip.clip.where.stem for clip in clips]
    found: dict[str, Path] = {}
    missing = []
    for clip, stem in zip(clips, stems, strict=True):
        video = by_clip.get(clip.name) or by_name.get(clip.name)
        if video is None and stems.count(stem) == 1:
            video = by_clip.get(stem) or by_stem.get(stem)
        if video is None:
            missing.append(clip.name)
        else:
            found[clip.name] = video
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise InputError(
            f"{folder}: has no video for {len(missing)} of {len(clips)} clips ({some}); expected "
            f"{missing[0]}.mp4 there, or a metadata.csv with the columns file_name,clip"
        )
    taken = set(found.values())
    return found, [video for video in videos if video not in taken]


def read_finished_frames(path: Path, clip: ReferenceClip, size: Size) -> Tensor:
    """A finished video as uint8 `[F, 3, height, width]`, frame i answering frame i of the clip.

    A video of F frames is taken whole. One with as many frames at the same rate as the clip's own file (a filtered
    copy, say) gives the same frames as that. A video of the clip's own size is cropped and resized like it; any other
    must have the evaluation's size already.

    Raises:
        InputError: another number of frames or another size, or a file that can't be decoded.
    """
    info, frames = probe(path), len(clip.indices)
    if info.frames == frames:
        indices: Sequence[int] = range(frames)
    elif info.frames == clip.info.frames and math.isclose(info.fps, clip.info.fps, rel_tol=1e-3):
        indices = clip.indices
    else:
        raise InputError(
            f"{path}: has {info.frames} frames; expected {frames}, one for each frame that is evaluated (or "
            f"{clip.info.frames} at {clip.info.fps:g} a second, like {clip.clip.where.name}): give --frames "
            f"{info.frames} if all the videos have as many"
        )
    if (info.height, info.width) in (size, (clip.info.height, clip.info.width)):
        return to_uint8(resize_frames(read_frames(path, indices), size))
    raise InputError(
        f"{path}: is {info.width}x{info.height} pixels; expected {size[1]}x{size[0]}, or "
        f"{clip.info.width}x{clip.info.height} as {clip.clip.where.name} has: give the --resolution of the videos, or "
        "resize them"
    )


def _metadata(folder: Path) -> Mapping[str, Path]:
    """clip -> video, from metadata.csv or metadata.jsonl in the folder, where their rows have both columns."""
    files = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    rows = [row for file in files for _, row in read_rows(file)]
    found = {}
    for row in rows:
        clip, name = row.get("clip"), row.get("file_name")
        if not (clip and name):
            continue
        video = folder / str(name)
        if not is_file(video):
            name, clip = map(one_line, (name, clip))
            raise InputError(f"{folder}: its metadata names {name} for clip {clip}, and no such file is there")
        found[str(clip)] = video
    return found


def _name(path: Path, folder: Path) -> str:
    relative = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
    return "-".join(relative.with_suffix("").parts)
