"""The grid of videos: a row a clip, a column a method, inside the page as far as there is room, and the cases to show.

The page's script attaches a video to the player only while its row is near the window, so many clips stay light.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from contrastive_i2v.data.video import VideoError, VideoInfo, probe
from contrastive_i2v.evaluation.report.evaluation_rows import ARROWS, Cases, Row, cases_of, clip_order, per_clip
from contrastive_i2v.evaluation.report.evaluation_tables import Styles, swatch
from contrastive_i2v.evaluation.results import Report

TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
"""What browsers play, by the end of the name."""
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

    def scripts(self) -> Iterator[str]:
        """An inert element a video, which the script turns into a file of the browser's when it is first shown."""
        for video, number in self.held.items():
            content = base64.b64encode(self.file(video).read_bytes()).decode()
            kind = TYPES[Path(video).suffix.lower()]
            yield f'<script type="text/plain" data-kind="{kind}" id="video-{number}">{content}</script>'


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One row of the grid."""

    name: str
    caption: str
    truth: str
    videos: Mapping[str, str]
    """Method -> its video."""


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


def video_grid(report: Report, rows: Sequence[Row], styles: Styles, library: Library) -> tuple[str, dict[str, Any]]:
    """The markup, and what its script must know: frames, their rate, and the cases of each metric."""
    clips = strips(report)
    if not clips:
        return "", {}
    data = {f"r{i}": _case_data(report, row) for i, row in enumerate(rows) if per_clip(report, row)}
    for index in _first_come(len(clips), data):
        library.take([clips[index].truth, *clips[index].videos.values()])
    shape = _probed(clips, library.folder)
    columns = [method.name for method in report.methods]
    truths = any(one.truth for one in clips)
    body = "".join(_strip(i, one, columns, truths, styles, library) for i, one in enumerate(clips))
    count = len(columns) + 1 + truths
    note = f"{_linked(clips, library)}Given frame: what every method starts from."
    markup = (
        f'{_controls(rows, data, shape.frames)}<p class="muted note">{note}</p>'
        f'<div id="cases" style="--cells:{count};--ratio:{shape.width}/{shape.height}">'
        '<h3 id="upper-title" hidden></h3><div id="upper"></div><h3 id="lower-title" hidden></h3><div id="lower"></div>'
        f'<div id="all">{body}</div></div>'
    )
    return markup, {"fps": shape.fps, "frames": shape.frames, "cases": data}


def _linked(clips: Sequence[Strip], library: Library) -> str:
    """A sentence on the clips that are not inside the page."""
    files = [[video for video in (one.truth, *one.videos.values()) if library.file(video).is_file()] for one in clips]
    linked = sum(any(video not in library.held for video in videos) for videos in files)
    if not linked:
        return ""
    return (
        f"{linked} of {len(clips)} clips are not inside this page, so they show only while their files lie beside it. "
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
        by.append(_case(name, titles, cases_of(row, values[name]), pair=False))
    pairs = [(a, b) for i, a in enumerate(values) for b in list(values)[i + 1 :]]
    for a, b in pairs if row.about.better != "none" else []:
        titles = f"Where {a} is most ahead of {b}", f"Where {a} is most behind {b}"
        by.append(_case(f"{a} against {b}", titles, cases_of(row, values[a], values[b]), pair=True))
    shown = {name: [row.show(value) for value in column] for name, column in values.items()}
    return {"title": f"{row.about.title} {ARROWS[row.about.better][0]}".strip(), "by": by, "values": shown}


def _case(label: str, titles: tuple[str, str], cases: Cases, *, pair: bool) -> dict[str, Any]:
    return {"label": label, "titles": titles, "upper": cases.upper, "lower": cases.lower, "pair": pair}


def _probed(clips: Sequence[Strip], folder: Path) -> VideoInfo:
    """Frames, rate and size of the first video that can be read; of a common one where none can."""
    for one in clips[:8]:
        for video in one.videos.values():
            try:
                return probe(folder / video)
            except VideoError:
                continue
    return VideoInfo(frames=16, fps=8.0, height=1, width=1)


def _controls(rows: Sequence[Row], data: Mapping[str, Any], frames: int) -> str:
    options, groups = "", dict.fromkeys(row.about.group for row in rows)
    for group in groups:
        members = [(f"r{i}", row) for i, row in enumerate(rows) if row.about.group == group and f"r{i}" in data]
        if members:
            choices = "".join(f'<option value="{key}">{escape(row.about.title)}</option>' for key, row in members)
            options += f'<optgroup label="{escape(group)}">{choices}</optgroup>'
    choice = (
        '<div class="pickers"><label>Show <select id="metric"><option value="">all clips</option>'
        f'{options}</select></label><label id="by-label" hidden>cases <select id="by"></select></label></div>'
    )
    speeds = "".join(
        f'<option value="{speed:g}"{" selected" * (speed == 1)}>{speed:g}×</option>' for speed in (0.25, 0.5, 1, 2)
    )
    return (
        f'<div class="player" hidden>{choice if options else ""}<div class="transport">'
        '<button id="back" type="button" aria-label="One frame back">‹</button>'
        '<button id="play" type="button">Play</button>'
        '<button id="forward" type="button" aria-label="One frame on">›</button>'
        f'<input id="frame" type="range" min="0" max="{frames - 1}" value="0" step="1" aria-label="Frame">'
        f'<output id="shown" for="frame"></output><label><span class="unseen">Speed</span>'
        f'<select id="speed">{speeds}</select></label></div></div>'
        "<noscript><p>The videos need JavaScript.</p></noscript>"
    )


def _strip(index: int, one: Strip, columns: Sequence[str], truths: bool, styles: Styles, library: Library) -> str:
    files = [one.truth, *one.videos.values()]
    given = next((video for video in files if video and playable(video) and library.file(video).is_file()), "")
    cells = [_cell("given frame", "given", given or files[-1], f"given frame of {one.name}", library, still=True)]
    if truths:
        cells.append(_cell("truth", "truth", one.truth, f"truth of {one.name}", library))
    for name in columns:
        video = one.videos.get(name, "")
        cells.append(_cell(name, styles[name], video, f"{name}, {one.name}", library, method=name))
    return (
        f'<section class="strip" data-clip="{index}" aria-label="{escape(one.name)}"><div class="about">'
        f"<p>{escape(one.caption)}</p><small>{escape(one.name)}</small></div>"
        f'<div class="cells">{"".join(cells)}</div></section>'
    )


def _cell(
    label: str, style: str, video: str, said: str, library: Library, *, still: bool = False, method: str = ""
) -> str:
    line = "" if still else swatch(style)
    return (
        f'<figure class="cell" data-method="{escape(method)}"><div class="frame">{_player(video, said, library, still)}'
        f'</div><figcaption>{line}<span class="who">{escape(label)}</span><span class="score"></span></figcaption>'
        "</figure>"
    )


def _player(video: str, said: str, library: Library, still: bool) -> str:
    if not video:
        return "<p>no video</p>"
    if not library.file(video).is_file():
        return f"<p>missing file: {escape(video)}</p>"
    if not playable(video):
        return f"<p>browsers don't play this: {escape(video)}</p>"
    number = library.held.get(video)
    source = f'data-held="{number}"' if number is not None else f'data-file="{escape(_address(video))}"'
    kind = ' class="still"' if still else ""
    return f'<video{kind} muted playsinline preload="auto" {source} aria-label="{escape(said)}"></video>'


def playable(video: str) -> bool:
    """Whether browsers play such a file, by its name."""
    return Path(video).suffix.lower() in TYPES


def _address(video: str) -> str:
    """A file beside the page as a relative address, any other as a file: one."""
    path = Path(video)
    return path.as_uri() if path.is_absolute() else "./" + quote(path.as_posix())
