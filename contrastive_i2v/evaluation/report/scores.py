"""The page of a dataset's scores: a histogram of each, and frames of clips from its lowest to its highest."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from contrastive_i2v.evaluation.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ticks
from contrastive_i2v.evaluation.report.page import environment, read_asset
from contrastive_i2v.files import write_whole

BINS = 40
THUMBNAIL = 240
"""Pixels of a frame on the page, along its longer side."""
ABOUT = {
    "duration": "Seconds.",
    "fps": "Frames a second of the video.",
    "height": "Pixels.",
    "width": "Pixels.",
    "motion": "Mean absolute difference of two frames that are looked at, pixels in [-1, 1].",
    "sharpness": "Variance of the Laplacian of the luma; blur and flat pictures are low.",
    "cuts": "Hard cuts, where a difference stands out from its neighbours'.",
    "letterbox": "Share of the picture in constant rows and columns at its borders.",
    "overlay": "Share of the picture that is strong edges which stay while what is around them moves: watermarks, "
    "captions, but also what moves along with the camera.",
    "caption": "Mean cosine of CLIP's features of the caption and of the frames.",
    "duplicate": "How many earlier clips are near duplicates; 0 keeps the first of each group.",
}
"""What the scores mean."""


class Example(NamedTuple):
    """A clip shown for its score."""

    caption: str
    value: float
    frame: Tensor | None
    """uint8 `[3, H, W]`; None where it can't be read."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Bars and ticks in pixels, y downwards."""

    bars: list[tuple[float, float, float, float, str]]
    """x, y, width, height, and what it says."""
    across: list[tuple[float, str]]
    down: list[tuple[float, str]]


def histogram(values: Sequence[float]) -> Histogram | None:
    """The bars of the finite values, each one's height how many it has; None where there are none."""
    finite = torch.tensor([value for value in values if math.isfinite(value)], dtype=torch.float64)
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    whole = bool((finite == finite.round()).all()) and high - low < BINS
    if whole:  # a bar a number
        low, high, bins = low - 0.5, high + 0.5, round(high - low) + 1
    else:
        columns = ticks(low, high)
        low, high, bins = columns[0], columns[-1], BINS
    counts = torch.histc(finite, bins, low, high).int().tolist()
    rows = ticks(0, max(counts))

    def across(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / rows[-1] * (HEIGHT - TOP - BOTTOM), 1)

    edges = [low + (high - low) * number / bins for number in range(bins + 1)]
    bars = []
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        said = f"{(left + right) / 2:g}" if whole else f"{left:.4g} to {right:.4g}"
        place = across(left), down(count), max(0.5, across(right) - across(left) - 1), down(0) - down(count)
        bars.append((*place, f"{said}: {count}"))
    marks = [value for value in ticks(low, high) if low <= value <= high and (not whole or value == round(value))]
    return Histogram(
        bars=bars,
        across=[(across(value), f"{round(value, 10):g}") for value in marks],
        down=[(down(value), f"{round(value, 10):g}") for value in rows],
    )


def write_page(
    columns: Mapping[str, Sequence[float]],
    examples: Mapping[str, Sequence[Example]],
    path: Path,
    *,
    title: str,
    command: str,
) -> Path:
    """Write the page; returns it. `columns` and `examples` by score."""
    sections = [
        (name, ABOUT.get(name, ""), histogram(values), [(one, _picture(one.frame)) for one in examples[name]])
        for name, values in columns.items()
    ]
    template = environment().get_template("scores.html.jinja")
    html = template.render(title=title, sections=sections, command=command, style=Markup(read_asset("report.css")))
    write_whole(path, lambda part: part.write_text(html, encoding="utf-8"))
    return path


def _picture(frame: Tensor | None) -> str | None:
    """A small JPEG in base64."""
    if frame is None:
        return None
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=80)
    return base64.b64encode(data.getvalue()).decode()
