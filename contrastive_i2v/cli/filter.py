"""`contrastive-i2v filter`: score the clips of a dataset, so that training can choose among them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from torch import Tensor

from contrastive_i2v.data.examples import SKIPPED, none_left_in
from contrastive_i2v.data.frames import FramesConfig, valid_frames
from contrastive_i2v.data.reading import probe_clip, read_clip
from contrastive_i2v.data.sources import SourceConfig, read
from contrastive_i2v.data.types import Clip, NoClipLeft
from contrastive_i2v.data.video import VideoError
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.evaluation.report.scores import Example, write_page
from contrastive_i2v.system import default_device
from contrastive_i2v.training.scores import ScoresConfig, ScoreTable, example_rows, score_clips

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of each score, whose clips are shown."""


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """The clips."""

    path: Path
    """Folder of videos with captions, or a dataset in any form of docs/data.md."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """How it is read."""


@dataclass(frozen=True, kw_only=True)
class Options(ScoresConfig):
    """Score clips: duration, size, motion, sharpness, cuts, letterbox bars, still overlays, near duplicates, and with
    --clip the similarity of caption and frames.

    Nothing is chosen: training does that, by --data.scores with --data.where or --data.keep. A page beside the scores
    has a histogram and examples of each. The same command goes on where it was stopped, and scores clips that are new.
    """

    data: DatasetOptions
    output: Path = Path("scores.parquet")
    """File of the scores; the page has its name and ends in .html."""
    seed: int = 0
    """The training run's seed: it draws one of several captions."""
    workers: int = max(1, (os.cpu_count() or 1) - 1)
    """Processes that decode and measure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"workers": 0})
        if self.output.suffix != ".parquet":
            raise InputError(f"output: expected a file that ends in .parquet, got {self.output}")


def run(arguments: Sequence[str]) -> None:
    """Parse the options, score, and write the page."""
    options = tyro.cli(Options, prog="contrastive-i2v filter", args=arguments)
    from contrastive_i2v.evaluation.extractors.loading import load_clip  # these take seconds
    from contrastive_i2v.training.batches import say_skipped
    from contrastive_i2v.training.selection import caption_similarity

    found = read(options.data.path, options.data.source, seed=options.seed)
    print(found)
    network = load_clip(options.clip, default_device())
    skipped_file = options.output.with_name(f"{options.output.stem}.{SKIPPED}")

    def similarity(pixels: Tensor, caption: str) -> float:
        assert network is not None
        return caption_similarity(pixels, caption, network)

    config = ScoresConfig(frame_rate=options.frame_rate, seconds=options.seconds, side=options.side, clip=options.clip)
    try:
        skipped = score_clips(
            found.clips,
            config,
            options.output,
            similarity=similarity if network else None,
            workers=options.workers,
        )
    except NoClipLeft as error:
        raise none_left_in(skipped_file, error, found.skipped) from error
    say_skipped([*found.skipped, *skipped], skipped_file)
    page = show_scores(found.clips, options.output, command=shlex.join(["contrastive-i2v", "filter", *arguments]))
    print(f"scores: {options.output}\npage:   {page}")


def show_scores(clips: Sequence[Clip], file: Path, *, command: str) -> Path:
    """Write the page of scores of these clips beside their file; returns it."""
    table = ScoreTable(file)
    scored: list[tuple[Clip, int]] = []
    for clip in clips:
        try:
            row = table.row(clip)
        except VideoError:
            continue
        if row is not None:
            scored.append((clip, row))
    columns = {name: [table.columns[name][row] for _, row in scored] for name in table.names}
    examples: dict[str, list[Example]] = {}
    for name, values in columns.items():
        places = dict.fromkeys(example_rows(values, QUANTILES))
        examples[name] = [Example(scored[i][0].caption, values[i], _middle(scored[i][0])) for i in places]
    return write_page(
        columns, examples, file.with_suffix(".html"), title=f"Scores of {len(scored)} clips", command=command
    )


def _middle(clip: Clip) -> Tensor | None:
    """The frame in the middle of a clip, uint8 `[3, H, W]`; None where it can't be read."""
    try:
        indices = valid_frames(probe_clip(clip), clip, FramesConfig())
        return read_clip(clip, [indices[len(indices) // 2]])[0]
    except VideoError:
        return None
