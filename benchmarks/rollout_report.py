"""What docs/performance.md says of `python -m benchmarks.rollout_speed`, made by `python -m benchmarks report`.

Needs the results files alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import quantiles
from benchmarks.video_report import table

BEST = "pipeline, best"
GOAL = 2.0
"""Frames a second over those of the pipeline's best."""
ALIKE = 0.001
"""A share of the pipeline's best error or FVD that is rounding's."""
Row = dict[str, Any]


def performance(folder: Path) -> str:
    """The section; "" without results."""
    found = [device(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return "\n\n".join(["## Rollouts at equal quality", *found]) if found else ""


def device(found: dict[str, Any]) -> str:
    """One file's tables, and which rows meet the goal."""
    about, rows = found["about"], found["rows"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("torch", "diffusers"))
    met = [row["name"] for row in rows if not row["name"].startswith("pipeline") and meets_goal(row, rows)]
    network = f", a network of {found['parameters'] / 1e6:.1f} M parameters" if "parameters" in found else ""
    commit = f", commit {about['commit']}" if about["commit"] else ""
    head = (
        f"### {about['device']['name']}: {found['clips']} clips{network}\n\nMade by "
        f"`python -m benchmarks.rollout_speed`, {about['date']}, {versions}{commit}. The pipeline is "
        "diffusers' StableDiffusionInstructPix2PixPipeline frame by frame; its best setting and the calibrated one "
        f"were chosen on {found['validation']} other clips."
    )
    goal = (
        f"At least {GOAL:g}x the frames a second of the pipeline's best in batches of every size, neither error nor "
        f"FVD told apart as worse by more than {ALIKE:.1%}: **{'; '.join(met) or 'no row'}**."
    )
    keyed = any(row["timed_frames"] != found["timed_frames"] for row in rows)
    whole = ", with keyframes of a whole video" if keyed else ""
    speed = (
        "Frames a second, pixels included, as median [p20, p80] of rounds in turns; times are those of "
        f"{found['timed_frames']} new frames{whole}. Behind them, over the pipeline's best, round by round."
    )
    quality = (
        "Error is the mean squared error of pixels in [-1, 1]. With 95 % intervals over the clips; differences are "
        "from the pipeline's best on the same clips. Motion is the truth's at 1."
    )
    return "\n\n".join([head, goal, speed, _speed(rows), quality, _quality(rows)])


def meets_goal(row: Row, rows: Sequence[Row]) -> bool:
    """Fast enough in batches of every size, and not told apart as worse in error and FVD."""
    fast = all(quantiles(ratios)[1] >= GOAL for ratios in _ratios(row, rows).values())
    best = next(one for one in rows if one["name"] == BEST)["quality"]
    names = [name for name in ("frame_mse", "fvd") if name in best]
    gaps = {name: row["quality"][name]["over best"] for name in names}  # [value, low, high]
    return fast and not any(
        gap is None or gap[1] is None or gap[1] > ALIKE * best[name]["value"][0] for name, gap in gaps.items()
    )


def _ratios(row: Row, rows: Sequence[Row]) -> dict[str, list[float]]:
    best = next(one for one in rows if one["name"] == BEST)
    frames = row["timed_frames"] / best["timed_frames"]
    return {
        batch: [frames * theirs / ours for theirs, ours in zip(best["seconds"][batch], seconds, strict=True)]
        for batch, seconds in row["seconds"].items()
    }


def _speed(rows: Sequence[Row]) -> str:
    batches = list(rows[0]["seconds"])
    header = ["", "setting", *(cell for batch in batches for cell in (f"batch {batch}", "over the pipeline's best"))]
    lines = []
    for row in rows:
        cells = [row["name"], row["setting"]]
        for batch, ratios in _ratios(row, rows).items():
            new = int(batch) * row["timed_frames"]
            low, rate, high = quantiles([new / taken for taken in row["seconds"][batch]])
            slow, ratio, fast = quantiles(ratios)
            cells += [f"{rate:.3g} [{low:.3g}, {high:.3g}]", f"{ratio:.2f}x [{slow:.2f}, {fast:.2f}]"]
        lines.append(cells)
    return table(header, lines)


def _quality(rows: Sequence[Row]) -> str:
    frames = list(rows[0]["error at"])
    header = ["", *(f"error at frame {frame}" for frame in frames), "mean error", "less best's"]
    has_fvd = "fvd" in rows[0]["quality"]
    header += ["FVD", "less best's"] * has_fvd + ["motion"]
    lines = []
    for row in rows:
        quality = row["quality"]
        cells = [row["name"], *(f"{row['error at'][frame]:.4f}" for frame in frames)]
        cells += [f"{quality['frame_mse']['value'][0]:.4f}", _interval(quality["frame_mse"]["over best"], "+.4f")]
        if has_fvd:
            cells += [_interval(quality["fvd"]["value"], ".1f"), _interval(quality["fvd"]["over best"], "+.1f")]
        lines.append([*cells, f"{quality['motion_ratio']['value'][0]:.2f}"])
    return table(header, lines)


def _interval(values: Sequence[float | None] | None, form: str) -> str:
    if values is None:
        return ""
    value, low, high = ("?" if one is None else format(one, form) for one in values)
    return f"{value} [{low}, {high}]"
