"""The page of a calibration: every setting that was tried, what no other beats, and how the rollouts changed."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup
from torch.nn import functional as F

from contrastive_i2v.data.video import to_uint8, write_video
from contrastive_i2v.evaluation.calibration import Calibration, Clips, Trial, pareto
from contrastive_i2v.evaluation.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, line_chart, ticks
from contrastive_i2v.evaluation.report.page import environment, read_asset
from contrastive_i2v.files import write_whole

SHOWN = 4
"""Clips in the video."""
PAGE = "calibration.html"


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A trial in the plane of error and Frechet distance, in pixels."""

    x: float
    y: float
    style: str
    trial: Trial


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The plane: ticks, trials, and the line through those that no other beats in both."""

    across: list[tuple[float, str]]
    down: list[tuple[float, str]]
    dots: list[Dot]
    front: list[tuple[float, float]]
    steps: list[tuple[str, int]]
    """Style of each number of steps."""
    default: Dot
    chosen: Dot


def plane(found: Calibration) -> Plane:
    """Where everything lies; trials that aren't finite, or twice as far as the model's own, are left out."""
    limits = 2 * found.default.error, 2 * found.default.frechet
    shown = [t for t in found.trials if math.isfinite(t.error) and t.error <= limits[0] and t.frechet <= limits[1]]
    columns = ticks(min(t.error for t in shown), max(t.error for t in shown))
    rows = ticks(min(t.frechet for t in shown), max(t.frechet for t in shown))
    steps = sorted({t.sampler.steps for t in shown}, reverse=True)

    def across(value: float) -> float:
        return round(LEFT + (value - columns[0]) / (columns[-1] - columns[0]) * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - rows[0]) / (rows[-1] - rows[0]) * (HEIGHT - TOP - BOTTOM), 1)

    def dot(trial: Trial) -> Dot:
        style = f"tone{steps.index(trial.sampler.steps) % 6}"
        return Dot(x=across(trial.error), y=down(trial.frechet), style=style, trial=trial)

    return Plane(
        across=[(across(value), f"{round(value, 10):g}") for value in columns],
        down=[(down(value), f"{round(value, 10):g}") for value in rows],
        dots=[dot(trial) for trial in shown],
        front=[(across(t.error), down(t.frechet)) for t in pareto(shown)],
        steps=[(f"tone{index % 6}", count) for index, count in enumerate(steps)],
        default=dot(found.default),
        chosen=dot(found.chosen),
    )


@torch.no_grad()
def write_page(found: Calibration, clips: Clips, folder: Path, *, title: str, command: str) -> Path:
    """Write `folder/calibration.html` and `folder/calibration.mp4`, rows truth, before and after; returns the page."""
    system = clips.system
    few = clips.pick(range(min(SHOWN, len(clips.names))))
    rows = [few.truth, few.generate(found.default.sampler), few.generate(found.chosen.sampler)]
    pixels = [system.codec.decode(row.to(system.device)).float().cpu() for row in rows]  # [n, F, 3, H, W] each
    grid = torch.cat([torch.cat(list(row.unbind(0)), dim=-1) for row in pixels], dim=-2)  # [F, 3, 3 H, n W]
    scale = 2 if grid.shape[-1] <= 512 else 1
    video = folder / "calibration.mp4"
    write_video(video, to_uint8(F.interpolate(grid, scale_factor=scale, mode="nearest")), clips.fps)
    lines = [
        Series(name=name, style=style, points=list(enumerate(found.error_by_frame[name], start=1)))
        for name, style in (("default", "still"), ("chosen", "tone0"))
    ]
    html = (
        environment()
        .get_template("calibration.html.jinja")
        .render(
            found=found,
            title=title,
            command=command,
            plane=plane(found),
            curve=line_chart(lines),
            trials=sorted(found.trials, key=lambda trial: (-trial.sampler.steps, trial.objective)),
            video=base64.b64encode(video.read_bytes()).decode(),
            captions=few.captions,
            style=Markup(read_asset("report.css")),
        )
    )
    write_whole(folder / PAGE, lambda part: part.write_text(html, encoding="utf-8"))
    return folder / PAGE
