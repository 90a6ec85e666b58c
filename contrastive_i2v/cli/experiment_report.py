"""What the experiment found: paired differences to the baseline over the seeds, as a table, JSON and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v import __version__
from contrastive_i2v.data.video import write_whole
from contrastive_i2v.evaluation.compare import paired_difference
from contrastive_i2v.evaluation.distribution import frechet_distance
from contrastive_i2v.evaluation.report.charts import HEIGHT, WIDTH, Series, line_chart
from contrastive_i2v.training.forms import FORMS

BASELINE = "baseline"
STILL = "first frame repeated"
MOTION_TOLERANCE = 0.1
LAST, VIDEO, MOTION = "last frame", "video distance", "motion"
COLOURS = ("#62676c", "#1b66c9", "#c2570c", "#7a3fb0", "#1a8754", "#b3261e", "#00838f", "#8d6e00", "#5c6bc0", "#ad1457")

Scores = dict[str, dict[int, float]]
"""Metric -> seed -> value."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training's rollouts, measured: see `measured` in experiment.py."""

    form: str
    seed: int
    numbers: Mapping[str, Tensor]


def scores(runs: Sequence[Run], truth: Mapping[str, Tensor]) -> dict[str, Scores]:
    """Form -> metric -> seed -> value.

    The errors are means over the clips at a frame; the video distance is the Frechet distance between the
    features of all of a run's videos and the truth's; motion is a ratio of sums to the truth's; "dynamic" a share.
    """
    found: dict[str, Scores] = {}
    for run in runs:
        errors = run.numbers["errors"].mean(dim=0)  # [F]
        values = {
            "frame 1": float(errors[1]),
            f"frame {len(errors) // 2}": float(errors[len(errors) // 2]),
            LAST: float(errors[-1]),
            "mean error": float(errors[1:].mean()),
            VIDEO: frechet_distance(run.numbers["features"], truth["features"]),
            MOTION: float(run.numbers["motion"].sum() / truth["motion"].sum()),
            "dynamic": float(run.numbers["dynamic"].mean()),
        }
        for metric, value in values.items():
            found.setdefault(run.form, {}).setdefault(metric, {})[run.seed] = value
    return found


def difference(form: Scores, baseline: Scores, metric: str) -> tuple[float, float]:
    """Mean of form - baseline over the seeds that both have, and the half width of its 95 % interval (Student's t)."""
    seeds = sorted(form[metric].keys() & baseline[metric].keys())
    if not seeds:
        return math.nan, math.inf
    return paired_difference([form[metric][s] for s in seeds], [baseline[metric][s] for s in seeds])


def verdict(form: Scores, baseline: Scores) -> str:
    """ "better", "worse" or "not told apart" by the error at the last frame and the video distance together.

    Better (worse) needs both intervals on that side of 0; better also needs a motion within 10 % of the truth's.
    """
    gaps = [difference(form, baseline, metric) for metric in (LAST, VIDEO)]
    if all(gap + half < 0 for gap, half in gaps):
        moves = abs(_mean(form[MOTION]) - 1) <= MOTION_TOLERANCE
        return "better" if moves else "closer to the truth, but its motion is not within 10 %"
    if all(gap - half > 0 for gap, half in gaps):
        return "worse"
    return "not told apart by both"


def write_report(
    runs: Sequence[Run],
    truth: Mapping[str, Tensor],
    still: Mapping[str, Tensor],
    options: Mapping[str, Any],
    folder: Path,
) -> str:
    """Write results.json, table.md and error.svg; returns the table. `still` is the first frame repeated."""
    found = scores(runs, truth)
    frozen = scores([Run(form=STILL, seed=0, numbers=still)], truth)[STILL]
    curves = {
        form: torch.stack([run.numbers["errors"].mean(dim=0) for run in runs if run.form == form])  # [S, F]
        for form in found
    }
    table = markdown(found, frozen, float(truth["dynamic"].mean()))
    results = {
        "version": __version__,
        "torch": torch.__version__,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
        STILL: {metric: values[0] for metric, values in frozen.items()},
        "truth": {"dynamic": float(truth["dynamic"].mean()), "motion": 1.0},
        "forms": {form: _as_json(form, each, found.get(BASELINE)) for form, each in found.items()},
        "error_by_frame": {form: each.tolist() for form, each in curves.items()},
    }
    text = json.dumps(results, indent=1) + "\n"
    write_whole(folder / "results.json", lambda part: part.write_text(text, encoding="utf-8"))
    write_whole(folder / "table.md", lambda part: part.write_text(table + "\n", encoding="utf-8"))
    chart = figure(curves)
    write_whole(folder / "error.svg", lambda part: part.write_text(chart, encoding="utf-8"))
    return table


def markdown(found: Mapping[str, Scores], frozen: Scores, truly_dynamic: float) -> str:
    """Forms down, metrics across; under each number its paired difference to the baseline in per cent of the
    baseline's, with the 95 % interval."""
    metrics = list(next(iter(found.values())))
    lines = [f"| form | seeds | {' | '.join(metrics)} | |", "|" + "---|" * (len(metrics) + 3)]
    for form, each in found.items():
        cells = []
        for metric in metrics:
            cell = f"{_mean(each[metric]):.4g}"
            if metric not in (MOTION, "dynamic") and form != BASELINE and BASELINE in found:
                gap, half = difference(each, found[BASELINE], metric)
                scale = 100 / _mean({s: v for s, v in found[BASELINE][metric].items() if s in each[metric]})
                cell += f" ({gap * scale:+.1f}" + (f" ± {half * scale:.1f}" if math.isfinite(half) else "") + " %)"
            cells.append(cell)
        last = "" if form == BASELINE or BASELINE not in found else verdict(each, found[BASELINE])
        lines.append(f"| {form} | {len(each[LAST])} | {' | '.join(cells)} | {last} |")
    lines.append(f"| {STILL} | | {' | '.join(f'{_mean(frozen[metric]):.4g}' for metric in metrics)} | |")
    lines.append(f"| the truth | | {' | '.join(['0'] * (len(metrics) - 2))} | 1 | {truly_dynamic:.4g} | |")
    note = "In brackets: the paired difference to the baseline over the seeds, ± its 95 % interval from two seeds on."
    return "\n".join([*lines, "", note])


def figure(curves: Mapping[str, Tensor]) -> str:
    """Error by frame `[S, F]` of each form as a standalone SVG; the band is the standard deviation over the seeds."""
    series = []
    for number, (form, each) in enumerate(curves.items()):
        spread = each.std(dim=0).tolist() if len(each) > 1 else ()
        points = [(float(frame), value) for frame, value in enumerate(each.mean(dim=0).tolist())]
        series.append(Series(name=form, style=f"s{number}", points=points, spread=spread))
    chart = line_chart(series, x_label="frame", y_label="mean squared error", from_zero=True)
    tones = "".join(f".s{n} {{ --tone: {COLOURS[n % len(COLOURS)]}; }}" for n in range(len(series)))
    tones += "".join(f".line.s{n} {{ stroke-dasharray: 5 3; }}" for n in range(len(COLOURS), len(series)))
    places = [(48 + 130 * (n % 3), HEIGHT + 12 + 14 * (n // 3)) for n in range(len(series))]  # in three columns below
    legend = "".join(
        f'<path class="line s{n}" d="M{x} {y}h18"/><text x="{x + 23}" y="{y + 4}">{one.name}</text>'
        for n, (one, (x, y)) in enumerate(zip(series, places, strict=True))
    )
    height = places[-1][1] + 12
    size = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{2 * height}" '
    chart = chart.replace("<svg ", size, 1).replace(
        f'viewBox="0 0 {WIDTH} {HEIGHT}"', f'viewBox="0 0 {WIDTH} {height}"'
    )
    return chart.replace("</svg>", f"{legend}<style>{STYLE}{tones}</style></svg>")


STYLE = """svg { background: #fff; font-family: sans-serif; } text { fill: #444; font-size: 11px; }
.grid { stroke: #ddd; } .line { fill: none; stroke: var(--tone); stroke-width: 2; }
.band { fill: var(--tone); opacity: 0.14; } .dot { fill: var(--tone); }
"""


def _as_json(form: str, each: Scores, baseline: Scores | None) -> dict[str, Any]:
    values: dict[str, Any] = {"about": FORMS[form].about, "by_seed": each}
    if baseline is not None and form != BASELINE:
        gaps = {metric: difference(each, baseline, metric) for metric in each}
        values["difference"] = {
            metric: {"mean": gap, "half_width": half if math.isfinite(half) else None}
            for metric, (gap, half) in gaps.items()
        }
        values["verdict"] = verdict(each, baseline)
    return values


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)
