"""The grid of videos: a row a clip, a column a method, inside the page as far as there is room, and the cases to show.

The page's script attaches a video to the player only while its row is near the window, so many clips stay light.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from contrastive_i2v.data.video import VideoError, VideoInfo, probe
from contrastive_i2v.evaluation.report.rows import ARROWS, Row, cases_of, clip_order, per_clip
from contrastive_i2v.evaluation.results import Report
from contrastive_i2v.evaluation.videos import MIME_TYPES

FIRST = 4
"""Clips that are embedded before any best or worst case."""


@dataclass(kw_only=True)
class Library:
    """The videos that the page holds: file -> number, as long as there is room."""

    folder: Path
    room: int
    """Bytes of the page that are left; a file takes 4/3 of its size."""
    held: dict[str, int] = field(default_factory=dict)

    def file(self, video: str) -> Path:
        return self.folder / video

    def take(self, videos: Sequence[str]) -> bool:
        """Hold all of these or, where there is no room, none."""
        new = [v for v in dict.fromkeys(videos) if v not in self.held and playable(v) and self.file(v).is_file()]
        size = sum(-(-self.file(v).stat().st_size // 3) * 4 for v in new)
        if size > self.room:
            return False
        self.room -= size
        self.held.update({video: len(self.held) + i for i, video in enumerate(new)})
        return True

    def contents(self) -> Iterator[tuple[int, str, str]]:
        """Number, media type and base64 of each video, which the script turns into a file when it is first shown."""
        for video, number in self.held.items():
            content = base64.b64encode(self.file(video).read_bytes()).decode()
            yield number, MIME_TYPES[Path(video).suffix.lower()], content

    def player(self, video: str) -> Player:
        """What stands in a video's place."""
        if not video:
            return Player(instead="no video")
        if not self.file(video).is_file():
            return Player(instead=f"missing file: {video}")
        if not playable(video):
            return Player(instead=f"browsers don't play this: {video}")
        held = self.held.get(video)
        return Player(held=held) if held is not None else Player(file=_address(video))


@dataclass(frozen=True, kw_only=True)
class Player:
    """A video of the page, by its number, or one beside the page, by its address, or a text instead."""

    held: int | None = None
    file: str = ""
    instead: str = ""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One row of the grid."""

    name: str
    caption: str
    truth: str
    videos: Mapping[str, str]
    """Method -> its video."""

    @property
    def files(self) -> list[str]:
        return [self.truth, *self.videos.values()]

    def given(self, library: Library) -> str:
        """The video whose first frame is shown as the given one."""
        there = (video for video in self.files if video and playable(video) and library.file(video).is_file())
        return next(there, self.files[-1])


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid, and what its script must know: frames, their rate, and the cases of each metric."""

    strips: list[Strip]
    methods: list[str]
    truths: bool
    shape: VideoInfo
    linked: int
    """Clips that are not inside the page."""
    choices: list[tuple[str, list[tuple[str, str]]]]
    """Group, and key and title of each metric that has cases."""
    data: dict[str, Any]
    library: Library


def strips(report: Report) -> list[Strip]:
    """One a clip, in `clip_order`."""
    by_method = {method.name: {clip.name: clip for clip in method.clips} for method in report.methods}
    rows = []
    for clip in clip_order(report):
        same = {name: clips[clip.name] for name, clips in by_method.items() if clip.name in clips}
        truth = next((one.truth for one in same.values() if one.truth), "")
        videos = {name: one.video for name, one in same.items()}
        rows.append(Strip(name=clip.name, caption=clip.caption, truth=truth, videos=videos))
    return rows


def video_grid(report: Report, rows: Sequence[Row], library: Library) -> Grid | None:
    """Fill the library with the videos that there is room for; None without clips."""
    clips = strips(report)
    if not clips:
        return None
    cases = {f"r{i}": _case_data(report, row) for i, row in enumerate(rows) if per_clip(report, row)}
    for index in _first_come(len(clips), cases):
        library.take(clips[index].files)
    shape = _probed(clips, library.folder)
    choices: dict[str, list[tuple[str, str]]] = {}
    for i, row in enumerate(rows):
        if f"r{i}" in cases:
            choices.setdefault(row.about.group, []).append((f"r{i}", row.about.title))
    return Grid(
        strips=clips,
        methods=[method.name for method in report.methods],
        truths=any(one.truth for one in clips),
        shape=shape,
        linked=sum(any(library.player(video).file for video in one.files) for one in clips),
        choices=list(choices.items()),
        data={"fps": shape.fps, "frames": shape.frames, "cases": cases},
        library=library,
    )


def _first_come(count: int, data: Mapping[str, Any]) -> list[int]:
    """All clips, in the order in which they get room: the first few, then the most extreme cases of all metrics."""
    ends = [end for metric in data.values() for case in metric["by"] for end in (case["upper"], case["lower"])]
    extremes = (i for rank in zip_longest(*ends) for i in rank if i is not None)
    return list(dict.fromkeys(chain(range(min(FIRST, count)), extremes, range(count))))


def _case_data(report: Report, row: Row) -> dict[str, Any]:
    values = per_clip(report, row)
    by = []
    for name in values:
        directed = row.about.better != "none"
        titles = (f"Best for {name}", f"Worst for {name}") if directed else (f"Highest of {name}", f"Lowest of {name}")
        by.append({"label": name, "titles": titles, **asdict(cases_of(row, values[name])), "pair": False})
    pairs = [(a, b) for i, a in enumerate(values) for b in list(values)[i + 1 :]]
    for a, b in pairs if row.about.better != "none" else []:
        titles = f"Where {a} is most ahead of {b}", f"Where {a} is most behind {b}"
        cases = cases_of(row, values[a], values[b])
        by.append({"label": f"{a} against {b}", "titles": titles, **asdict(cases), "pair": True})
    shown = {name: [row.show(value) for value in column] for name, column in values.items()}
    return {"title": f"{row.about.title} {ARROWS[row.about.better][0]}".strip(), "by": by, "values": shown}


def _probed(clips: Sequence[Strip], folder: Path) -> VideoInfo:
    """Frames, rate and size of the first video that can be read; of a common one where none can."""
    for one in clips[:8]:
        for video in one.videos.values():
            try:
                return probe(folder / video)
            except VideoError:
                continue
    return VideoInfo(frames=16, fps=8.0, height=1, width=1)


def playable(video: str) -> bool:
    """Whether browsers play such a file, by its name."""
    return Path(video).suffix.lower() in MIME_TYPES


def _address(video: str) -> str:
    """A file beside the page as a relative address, any other as a file: one."""
    path = Path(video)
    return path.as_uri() if path.is_absolute() else "./" + quote(path.as_posix())
