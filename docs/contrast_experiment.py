"""The contrastive term, calibration and keyframes, from three starts on three kinds of footage, for docs/results.md.

`python -m docs.contrast_experiment FOLDER` runs what FOLDER doesn't hold yet (hours), puts its cells into contrast.json
and writes the tables of all cells there; with `--tables` it runs nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dacite

from benchmarks.report import replace_generated
from benchmarks.video_report import table
from contrastive_i2v.cli.main import main as command
from contrastive_i2v.evaluation.report.seeds import difference
from contrastive_i2v.evaluation.results import FormOverSeeds, SeedNumber, load_report

PAGE = Path(__file__).parent / "results.md"
SAVED = Path(__file__).parent / "contrast.json"
BEGIN = "<!-- generated: python -m docs.contrast_experiment -->"
END = "<!-- end of the generated part -->"
STARTS = ("packaged", "weak", "text-to-image")
FOOTAGE = ("shapes", "open", "camera")
SEEDS = ("0", "1", "2")
LIVING = ("baseline", "contrastive")
"""Forms that are run in every cell; the others of one seed did not live past it."""
OTHERS = {
    ("packaged", "shapes"): (
        "half-updates",
        "literal",
        "own-sample-contrast",
        "own-sample-positive",
        "flow-contrast",
        "text-frames",
        "dispersive",
        "own-conditions",
        "own-errors",
        "noisy-timesteps",
    ),
    ("text-to-image", "shapes"): ("literal", "own-sample-contrast"),
}
STEPS = (30, 100)
"""Shorter trainings from the text-to-image base, beside its 300 steps: who learns to use the condition first?"""
SCRATCH = ("--start-steps", "0", "--steps", "3000")
"""Of keyframes beside none: both learn their distances from random weights."""
SHOWN = ("Frame MSE, frame 1", "Frame MSE, frame 8", "Frame MSE, frame 15", "FVD", "Motion ratio")
EXTRA = ("Caption holds", "Last frame's shape, plain walls", "Mode coverage")


def main(root: Path, *, only_tables: bool) -> None:
    if not only_tables:
        run_all(root)
    cells = json.loads(SAVED.read_text())
    for folder in sorted(root.glob("*-*")):
        if (folder / "report.json").exists():
            cells[folder.name] = [as_json(form) for form in load_report(folder / "report.json").over_seeds]
    cells = dict(sorted(cells.items()))
    SAVED.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(cells[name])}" for name in cells) + "\n}\n")
    config = dacite.Config(cast=[float])
    found = {name: [dacite.from_dict(FormOverSeeds, form, config) for form in forms] for name, forms in cells.items()}
    PAGE.write_text(replace_generated(PAGE.read_text(), "\n".join(tables(found)), (BEGIN, END)))


def run_all(root: Path) -> None:
    for footage in FOOTAGE:
        for start in STARTS:
            experiment(root, start, footage, LIVING, SEEDS)
    for steps in STEPS:
        folder = root / f"text-to-image-shapes-{steps}"
        for part in ("clips", "runs/start"):  # the same base
            shutil.copytree(root / "text-to-image-shapes" / part, folder / part, dirs_exist_ok=True)
        experiment(root, "text-to-image", "shapes", LIVING, SEEDS, str(steps), ("--steps", str(steps)))
    experiment(root, "weak", "shapes", ("baseline", "keyframes"), SEEDS, "scratch", SCRATCH)
    experiment(root, "weak", "shapes", ("keyframes",), SEEDS)
    for (start, footage), forms in OTHERS.items():
        experiment(root, start, footage, forms, SEEDS)


def experiment(
    root: Path,
    start: str,
    footage: str,
    forms: tuple[str, ...],
    seeds: tuple[str, ...],
    name: str = "",
    more: tuple[str, ...] = (),
) -> None:
    folder = root / f"{start}-{footage}{f'-{name}' if name else ''}"
    options = ["--start", start, "--footage", footage, "--light", "--output", str(folder)]
    options += ["--samples", "3"] if footage == "open" else []
    if status := command(["experiment", *options, *more, "--forms", *forms, "--seeds", *seeds]):
        sys.exit(status)


def as_json(form: FormOverSeeds) -> dict[str, Any]:
    """Its numbers in the tables, but for what isn't finite."""

    def finite(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if not isinstance(value, float) or math.isfinite(value)}

    numbers = [finite(asdict(one)) for one in form.numbers if one.title in (*SHOWN, *EXTRA)]
    return {**asdict(form), "numbers": numbers}


def tables(found: dict[str, list[FormOverSeeds]]) -> list[str]:
    """Calibration against none, forms against the baseline, and how long learning to use the condition takes."""
    calibrated, forms = [], []
    for name, rows in found.items():
        cell = name.replace("text-to-image", "text to image").replace("-", ", ")
        for row in rows:
            if row.form == "baseline, calibrated":
                calibrated.append([cell, *numbers(row, gap_alone=False)])
            elif row.seeds and not row.form.startswith("baseline"):
                form, _, at = row.form.partition(", ")
                forms.append([cell, form, at or "common", str(len(row.seeds)), *numbers(row, gap_alone=True)])
    return [
        "**Calibrated baseline** (in brackets: against the same weights at common settings, over the seeds)",
        "",
        table(["start, footage", *SHOWN, *EXTRA], calibrated),
        "",
        "**Forms against the baseline** that is sampled alike, over the seeds",
        "",
        table(["start, footage", "form", "sampled", "seeds", *SHOWN, *EXTRA], forms),
    ]


def numbers(row: FormOverSeeds, *, gap_alone: bool) -> list[str]:
    by_title = {one.title: one for one in row.numbers}
    return [cell(by_title.get(title), gap_alone) for title in (*SHOWN, *EXTRA)]


def cell(one: SeedNumber | None, gap_alone: bool) -> str:
    if one is None:
        return ""
    gap = difference(one)
    bold = "**" * one.is_apart
    return f"{bold}{gap}{bold}" if gap_alone else f"{one.mean:.3g}" + f" ({bold}{gap}{bold})" * bool(gap)


if __name__ == "__main__":
    arguments = [one for one in sys.argv[1:] if one != "--tables"]
    main(Path(arguments[0]), only_tables="--tables" in sys.argv)
