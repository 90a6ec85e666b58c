"""Scores of a dataset's clips, in Parquet: measured by `contrastive-i2v filter`, read where training chooses clips.

A row is a clip: its key, as the latent cache has it, its path, caption and bounds, and a column a score. While clips
are measured, parts lie in `FILE.parts/`; the same call goes on after the last one, and a file that is finished already
is extended by clips that it lacks.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from contrastive_i2v.data.ahead import read_ahead
from contrastive_i2v.data.cache import clip_key
from contrastive_i2v.data.examples import BYTES_AT_ONCE
from contrastive_i2v.data.frames import FramesConfig, skip_reason, valid_frames
from contrastive_i2v.data.reading import ClipReader
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.data.video import VideoError, VideoInfo, resize_frames, to_uint8
from contrastive_i2v.errors import InputError, check_fields, one_line
from contrastive_i2v.files import locked_folder, write_whole
from contrastive_i2v.training import quality

RANKED = ("motion", "sharpness", "caption")
"""Scores by whose mean rank `data.keep` chooses; more is better."""
ABOUT = ("key", "path", "text", "start", "end", "hash")
"""Columns that are no scores."""
FEW = 8
"""Frames, spread evenly, whose sharpness and similarity to the caption are measured."""
CLIPS_A_PART = 256
SETTING = b"contrastive_i2v"
CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@dataclass(frozen=True, kw_only=True)
class ScoresConfig:
    """What is looked at; scores of another one don't compare."""

    frame_rate: float = 10.0
    """Frames a second that are looked at. Motion is between two of them."""
    seconds: float = 60.0
    """Of longer clips the first so many."""
    side: int = 256
    """Frames are resized to so many pixels along their shorter side, and not cropped."""
    clip: str | None = None
    """CLIP's folder or hub id, for the similarity of caption and frames; None = without it."""

    def __post_init__(self) -> None:
        check_fields(self, {"side": 32}, positive=("frame_rate", "seconds"))


class Looked(NamedTuple):
    """What a worker measures of a clip."""

    row: dict[str, Any]
    few: Tensor
    """uint8 `[FEW, 3, H, W]`, for CLIP."""


@dataclass(frozen=True)
class Condition:
    """NAME<VALUE, or another comparison: a clip stays where it holds."""

    name: str
    sign: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises InputError."""
        match = CONDITION.fullmatch(text)
        try:
            value = float(match[3]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or math.isnan(value):
            raise InputError(f"where: {text!r} is no condition; expected NAME<VALUE, or <=, >, >=, ==, != in its place")
        return cls(match[1], match[2], value)

    def holds(self, value: float) -> bool:
        return COMPARE[self.sign](value, self.value)

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.value:g}"


class ScoreTable:
    """The scores of a file, by clip. Raises InputError for a file that isn't one of `filter`'s."""

    def __init__(self, path: Path) -> None:
        table = _read(path)
        self.path = path
        self.names = [name for name in table.column_names if name not in ABOUT]
        self.columns = {name: _numbers(path, table, name) for name in self.names}
        self._rows = {key: row for row, key in enumerate(map(str, table["key"].to_pylist()))}
        self._kept: dict[Clip, int] = {}

    def row(self, clip: Clip) -> int | None:
        """The clip's row; None where it has none, or changed since. Raises VideoError where its file isn't there."""
        return self._rows.get(clip_key(clip))

    def ranked(self, clips: Sequence[Clip]) -> list[dict[str, float]]:
        """What `data.keep` ranks clips by that `choose` kept."""
        names = [name for name in RANKED if name in self.columns]
        return [{name: self.columns[name][self._kept[clip]] for name in names} for clip in clips]

    def choose(self, clips: Sequence[Clip], conditions: Sequence[Condition]) -> tuple[list[Clip], list[Skipped]]:
        """The clips for which all conditions hold, and the others with the reason. Raises InputError for a name that
        is no score's."""
        for one in conditions:
            if one.name not in self.columns:
                raise InputError(f"where: {self.path} has no score {one.name}; expected one of {', '.join(self.names)}")
        kept: list[Clip] = []
        skipped: list[Skipped] = []
        for clip in clips:
            try:
                row = self.row(clip)
            except VideoError as error:
                skipped.append(Skipped.because(clip.where, error))
                continue
            if row is None:
                skipped.append(Skipped(clip.where, f"has no scores in {self.path}; run contrastive-i2v filter again"))
                continue
            failed = [one for one in conditions if not one.holds(self.columns[one.name][row])]
            if failed:
                name = failed[0].name
                skipped.append(Skipped(clip.where, f"{name} is {self.columns[name][row]:g}, not {failed[0]}"))
            else:
                kept.append(clip)
                self._kept[clip] = row
        return kept, skipped


def measure(clip: Clip, config: ScoresConfig) -> Looked | Skipped:
    """A clip's scores but for those of a network; or why it has none. Raises VideoError."""
    frames_config = FramesConfig(frame_rate=config.frame_rate, max_seconds=math.inf)
    with ClipReader(clip) as video:
        return _measure(video, config, frames_config)


def _measure(video: ClipReader, config: ScoresConfig, frames_config: FramesConfig) -> Looked | Skipped:
    clip, header = video.clip, video.probe()
    for info in (header, replace(header, frames=header.frames - 1)):
        if reason := skip_reason(info, clip, frames_config, least=1):
            return Skipped(clip.where, reason)
        indices = valid_frames(info, clip, frames_config)[: math.ceil(config.seconds * config.frame_rate)]
        try:
            frames = _read_small(video, info, indices, config.side)
        except VideoError:
            if info is not header or indices[-1] != header.frames - 1:
                raise  # else the container may overstate its length by one
        else:
            return _looked(video, info, indices, frames)
    raise AssertionError("not reached")


def _looked(video: ClipReader, info: VideoInfo, indices: Sequence[int], frames: Tensor) -> Looked:
    clip = video.clip
    few = frames[quality.spread(len(frames), FEW)]
    pairs = zip(frames[:-1], frames[1:], strict=True)
    motions = [quality.motion(torch.stack(pair).float() / 127.5 - 1) for pair in pairs]
    around = [range(indices[i - 1], indices[i] + 1) for i in quality.possible_cuts(frames)]
    end = info.seconds if clip.end is None else min(clip.end, info.seconds)
    row = {
        "duration": end - (clip.start or 0.0),
        "fps": info.fps,
        "height": info.height,
        "width": info.width,
        "motion": sum(motions) / max(1, len(motions)),
        "sharpness": quality.sharpness(few.float() / 127.5 - 1),
        "cuts": sum(quality.is_cut(video.read(some)) for some in around),
        "letterbox": quality.letterbox(frames),
        "overlay": quality.overlay(frames),
        "hash": quality.perceptual_hash(frames),
    }
    return Looked(row, few)


def _read_small(video: ClipReader, info: VideoInfo, indices: Sequence[int], side: int) -> Tensor:
    """Native frames, uint8 `[F, 3, H, W]`, the shorter side `side`."""
    scale = side / min(info.height, info.width)
    size = (max(1, round(info.height * scale)), max(1, round(info.width * scale)))
    count = max(1, BYTES_AT_ONCE // (3 * info.height * info.width))
    starts = range(0, len(indices), count)
    return torch.cat([to_uint8(resize_frames(video.read(indices[i : i + count]), size)) for i in starts])


class _Clips(Dataset[Looked | Skipped]):
    """Clips measured by a DataLoader's workers."""

    def __init__(self, clips: Sequence[Clip], config: ScoresConfig) -> None:
        self.clips, self.config = clips, config

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Looked | Skipped:
        clip = self.clips[index]
        try:
            return measure(clip, self.config)
        except VideoError as error:
            return Skipped.because(clip.where, error)


def score_clips(
    clips: Sequence[Clip],
    config: ScoresConfig,
    file: Path,
    *,
    similarity: Callable[[Tensor, str], float] | None = None,
    workers: int = 0,
    progress: bool = True,
) -> list[Skipped]:
    """Measure clips into `file`, a row each in their order, but for those that it or its parts have already.

    Args:
        similarity: of frames `[F, 3, H, W]` in [-1, 1] and a caption; the score `caption`.
        workers: processes that decode and measure.

    Returns:
        the clips left out, which have no row.

    Raises:
        InputError: scores of another config, a disk that refuses; NoClipLeft where no clip can be read.
    """
    parts = file.with_name(f"{file.name}.parts")
    with locked_folder(parts):
        skipped = _score_clips(clips, config, file, parts, similarity, workers=workers, progress=progress)
    shutil.rmtree(parts, ignore_errors=True)
    return skipped


def _score_clips(
    clips: Sequence[Clip],
    config: ScoresConfig,
    file: Path,
    parts: Path,
    similarity: Callable[[Tensor, str], float] | None,
    *,
    workers: int,
    progress: bool,
) -> list[Skipped]:
    import pyarrow

    setting = json.dumps(asdict(config))
    earlier = [path for path in [file, *sorted(parts.glob("*.parquet"))] if path.exists()]
    done = set[str]()
    for path in earlier:
        table = _read(path)
        if (table.schema.metadata or {}).get(SETTING) != setting.encode():
            raise InputError(f"{path}: has scores of other options; give those, another --output, or delete it")
        done |= set(table["key"].to_pylist())
    keys, skipped = _keys(clips)
    todo = [number for number, key in keys.items() if key not in done]
    loader = DataLoader(_Clips([clips[number] for number in todo], config), batch_size=None, num_workers=workers)
    looked = read_ahead(loader, go_on="run the same command again: what is done stays")
    bar = tqdm(
        looked, desc="scoring", unit="clip", initial=len(keys) - len(todo), total=len(keys), disable=not progress
    )
    rows: list[dict[str, Any]] = []
    for count, (number, found) in enumerate(zip(todo, bar, strict=True), start=1):
        clip = clips[number]
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            about = {"key": keys[number], "path": str(clip.where), "text": clip.caption}
            rows.append({**about, "start": clip.start, "end": clip.end, **found.row})
            if similarity is not None:
                rows[-1]["caption"] = similarity(found.few.float() / 127.5 - 1, clip.caption)
        if rows and (len(rows) == CLIPS_A_PART or count == len(todo)):
            path = parts / f"{len(list(parts.glob('*.parquet'))):06d}.parquet"
            _write(path, pyarrow.Table.from_pylist(rows, schema=_schema(similarity is not None)), setting)
            earlier.append(path)
            rows = []
    if not earlier:
        raise NoClipLeft(skipped)
    _write(file, _ordered(earlier, list(keys.values())), setting)
    return skipped


def _keys(clips: Sequence[Clip]) -> tuple[dict[int, str], list[Skipped]]:
    """Each clip's key; those that aren't there, and repeats, are left out."""
    keys: dict[int, str] = {}
    skipped: list[Skipped] = []
    seen = set[str]()
    for number, clip in enumerate(clips):
        try:
            key = clip_key(clip)
        except VideoError as error:
            skipped.append(Skipped.because(clip.where, error))
            continue
        if key not in seen:
            seen.add(key)
            keys[number] = key
    return keys, skipped


def _ordered(paths: Sequence[Path], keys: Sequence[str]) -> Any:
    """All rows, those of `keys` first and in their order, with the near duplicates counted anew."""
    import pyarrow

    tables = [_read(path) for path in paths]
    names = [name for name in tables[0].column_names if name != "duplicate"]
    table = pyarrow.concat_tables([one.select(names) for one in tables])
    rows = {key: row for row, key in enumerate(table["key"].to_pylist())}
    first = [rows.pop(key) for key in keys if key in rows]
    table = table.take([*first, *rows.values()])
    duplicates = quality.earlier_duplicates(table["hash"].to_pylist())
    return table.append_column("duplicate", pyarrow.array(duplicates, pyarrow.float64()))


def _schema(captions: bool) -> Any:
    import pyarrow

    number, text = pyarrow.float64(), pyarrow.string()
    about = {"key": text, "path": text, "text": text, "start": number, "end": number}
    names = ("duration", "fps", "height", "width", "motion", "sharpness", "cuts", "letterbox", "overlay")
    scores = dict.fromkeys((*names, "caption") if captions else names, number)
    return pyarrow.schema([*about.items(), *scores.items(), ("hash", pyarrow.binary())])


def _write(path: Path, table: Any, setting: str) -> None:
    import pyarrow.parquet

    table = table.replace_schema_metadata({SETTING: setting})
    write_whole(path, lambda part: pyarrow.parquet.write_table(table, part))


def _read(path: Path) -> Any:
    """A table of scores. Raises InputError naming the file."""
    try:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path, partitioning=None)
        table.validate(full=True)
        names = table.column_names
    except Exception as error:  # pyarrow's own types, OSError, and others for damage
        raise InputError(f"{path}: not a readable parquet file ({one_line(error)})") from error
    if not set(ABOUT) <= set(names) or len(set(names)) < len(names):
        raise InputError(f"{path}: expected scores of `contrastive-i2v filter`, a column each of {', '.join(ABOUT)}")
    return table


def _numbers(path: Path, table: Any, name: str) -> list[float]:
    try:
        return [math.nan if value is None else float(value) for value in table[name].to_pylist()]
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: its column {name} isn't numbers ({one_line(error)})") from error


def example_rows(values: Sequence[float], quantiles: Sequence[float]) -> Iterator[int]:
    """The row at each quantile of some scores; none of none."""
    order = sorted(range(len(values)), key=lambda row: (values[row], row))
    return (order[round(quantile * (len(order) - 1))] for quantile in quantiles if order)
