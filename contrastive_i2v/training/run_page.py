"""A run's page, `run.html`: how far the run is, its curves, previews, skipped files, config and environment, in one
file that is written anew while the run goes on, and says when."""

from __future__ import annotations

import base64
import csv
import importlib.metadata
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from markupsafe import Markup

from contrastive_i2v.data.examples import SKIPPED
from contrastive_i2v.errors import DivergedError, one_line
from contrastive_i2v.evaluation.report.charts import LineChart, Point, Series, line_chart
from contrastive_i2v.evaluation.report.page import environment, read_asset
from contrastive_i2v.evaluation.suite import provenance
from contrastive_i2v.evaluation.videos import MIME_TYPES
from contrastive_i2v.files import write_whole
from contrastive_i2v.training.config import TrainConfig, as_plain
from contrastive_i2v.training.logs import RunLog

PAGE = "run.html"
EVERY = 30.0
"""Seconds between two writes, at least."""
POINTS = 300
"""Of a line; where there are more log lines, a point is the mean of several."""
SKIPPED_SHOWN = 50
EMBEDDED = 8_000_000
"""Bytes of a preview that is inside the page; a larger one is linked."""
FIRST = ("loss", "mse", "contrastive", "preview")
UNDRAWN = {"step", "units", "nonfinite_steps"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A chart of one figure by step."""

    title: str
    chart: LineChart
    legend: list[tuple[str, str, str]]
    """Style, name and last value of each line."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What the run does, in words."""

    running: bool
    says: str
    detail: str = ""


class RunPage:
    """Written when a run starts, at log lines (the first, then at most once in 30 s), with each preview and at the end.

    Args:
        rows: the log's; the list grows as the run goes on.
        step: where the run starts, or goes on.
        steps: its last one.
        captions: of the previewed clips.
    """

    def __init__(
        self,
        config: TrainConfig,
        rows: Sequence[Mapping[str, float]],
        *,
        step: int,
        steps: int,
        processes: int,
        captions: Sequence[str],
    ) -> None:
        self.config, self.rows, self.captions = config, rows, list(captions)
        self.first, self.step, self.steps = step, step, steps
        self.began = self.written = time.monotonic()
        self.gap = 0.0
        """Seconds, the longest between two writes."""
        versions = {name: importlib.metadata.version(name) for name in ("diffusers", "transformers", "accelerate")}
        precision = {"processes": str(processes), "mixed precision": config.mixed_precision}
        self.environment = provenance.environment() | versions | precision
        self._write()

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """The log has a new row."""
        is_first, self.step = self.step == self.first, step
        if is_first or time.monotonic() - self.written >= EVERY:
            self._write()

    def show(self, step: int, name: str, file: Path) -> None:
        """There is a new preview."""
        self.step = step
        self._write()

    def close(self, error: BaseException | None) -> None:
        """The run has ended."""
        self._write(error, ended=True)

    def _write(self, error: BaseException | None = None, *, ended: bool = False) -> None:
        now, folder = time.monotonic(), self.config.output
        self.gap, self.written = max(self.gap, now - self.written), now
        skipped = [] if self.config.data.shards else read_skipped(folder / SKIPPED)
        every = sorted((folder / "previews").glob("step-*.*"))
        previews = [(int(path.stem.removeprefix("step-")), path) for path in every]
        previews = [(step, path) for step, path in previews if step <= self.step]  # a resumed run makes later ones anew
        html = (
            environment()
            .get_template("run.html.jinja")
            .render(
                title=folder.name,
                state=self._state(error) if ended else self._running(),
                share=self.step / self.steps,
                written=datetime.now(timezone.utc),
                every=EVERY,
                gap=self.gap,
                stale=max(600.0, 3 * self.gap) if self.step > self.first else 3600.0,
                curves=curves(self.rows),
                latest=_embedded(previews[-1][1]) if previews else "",
                previews=[(step, f"previews/{path.name}") for step, path in previews],
                captions=self.captions,
                skipped=skipped[:SKIPPED_SHOWN],
                skipped_count=len(skipped),
                skipped_file=SKIPPED,
                config=(folder / "config.yaml").read_text(encoding="utf-8"),
                environment=self.environment,
                style=Markup(read_asset("report.css")),
            )
        )
        write_whole(folder / PAGE, lambda part: part.write_text(html, encoding="utf-8"))

    def _running(self) -> State:
        rate = (self.step - self.first) / max(self.written - self.began, 1e-9)
        says = f"Running when this was written: step {self.step} of {self.steps}"
        if not rate:
            return State(running=True, says=says + ".")
        speed = f"{rate:.3g} steps a second" if rate >= 1 else f"{1 / rate:.3g} seconds a step"
        left = timedelta(seconds=round((self.steps - self.step) / rate))
        return State(running=True, says=f"{says}, {speed} with all pauses, {left} left at this rate.")

    def _state(self, error: BaseException | None) -> State:
        """How the run ended."""
        where = f"step {self.step} of {self.steps}"
        if error is None:
            return State(running=False, says=f"Finished: {where}. The model is in model/.")
        if isinstance(error, KeyboardInterrupt):
            return State(running=False, says=f"Interrupted, last logged {where}.", detail="--resume goes on.")
        what = "Diverged" if isinstance(error, DivergedError) else f"Stopped by {type(error).__name__}"
        return State(running=False, says=f"{what}, last logged {where}.", detail=one_line(error))


def open_log(config: TrainConfig, step: int, steps: int, *, processes: int, captions: Sequence[str]) -> RunLog:
    """The log of a run that goes on after `step`, with its trackers and its page. Raises InputError."""
    log = RunLog(
        config.output, from_step=step, trackers=config.trackers, project=config.project, config=as_plain(config)
    )
    log.trackers.append(RunPage(config, log.rows, step=step, steps=steps, processes=processes, captions=captions))
    return log


def curves(rows: Sequence[Mapping[str, float]]) -> list[Curve]:
    """A chart a figure, training's line and the held-out clips' in one, and the validation loss by timestep in another;
    losses first. Figures that were never finite have none."""
    lines: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in UNDRAWN and math.isfinite(value):
                base, _, timestep = name.removeprefix("validation/").partition("_at_")
                title = f"{base}, held-out, by timestep" if timestep else base
                held_out = name.startswith(("validation/", "preview/"))
                line = f"t = {timestep}" if timestep else "held-out" if held_out else "training"
                lines.setdefault(title, {}).setdefault(line, []).append((row["step"], value))
    found = []
    for title, parts in sorted(lines.items(), key=lambda item: not item[0].startswith(FIRST)):
        styles = [f"tone{index % 6}" for index in range(len(parts))]
        series = [
            Series(name=name, style=style, points=thin(points))
            for style, (name, points) in zip(styles, parts.items(), strict=True)
        ]
        chart = line_chart(series)
        assert chart is not None
        last = [f"{points[-1][1]:.4g}" for points in parts.values()]
        found.append(Curve(title=title, chart=chart, legend=list(zip(styles, parts, last, strict=True))))
    return found


def thin(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most so many points, each the mean of as many neighbours."""
    size = -(-len(points) // most) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in some) / len(some), sum(y for _, y in some) / len(some)) for some in groups]


def read_skipped(path: Path) -> list[tuple[str, str]]:
    """Path and reason of each file that `write_skipped` named; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(row[0], row[1]) for row in csv.reader(file) if len(row) == 2][1:]


def _embedded(path: Path) -> str:
    """A file as a data: address, or where it is large as one beside the page."""
    if path.stat().st_size > EMBEDDED:
        return f"previews/{path.name}"
    kind = MIME_TYPES.get(path.suffix, "image/png")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
