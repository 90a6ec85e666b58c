"""Contrastive against baseline on real clips, over three seeds: `python docs/real_experiment.py FOLDER` (half an hour).

Each form trains from the packaged model on the clips of real_footage.py; all are compared on the seconds left out.
Run again it goes on with the first training that isn't finished.
"""

from __future__ import annotations

import sys
from pathlib import Path

import real_footage

from contrastive_i2v.cli.main import main as command
from contrastive_i2v.evaluation.results import load_report
from contrastive_i2v.evaluation.statistics import paired_difference

SEEDS = (0, 1, 2)
FORMS = ("baseline", "contrastive", "literal")
SHOWN = ("frame_mse", "fvd", "kvd", "motion_ratio", "subject_consistency")


def main(folder: Path) -> None:
    if not (folder / "test").is_dir():
        real_footage.main(folder)
    methods = []
    for seed in SEEDS:
        for form in FORMS:
            run = folder / f"{form}-{seed}"
            methods.append(f"{run.name}={run}")
            if (run / "model" / "model_index.json").is_file():
                continue
            options = ["--data.path", str(folder / "train"), "--data.cache-dir", str(folder / "latents")]
            options += ["--resume"] * (run / "config.yaml").is_file()
            options += ["--data.frames.windows-per-clip", "40", "--seed", str(seed), "--output", str(run)]
            if status := command(["train", "--recipe", f"tiny-{form}", *options]):
                sys.exit(status)
    comparison = folder / "comparison"
    options = ["--data", str(folder / "test"), "--frames", "5", "--resolution", "64", "--output", str(comparison)]
    if status := command(["compare", "--methods", *methods, "tiny", "first-frame", *options]):
        sys.exit(status)

    found = {
        (method.name, metric.name): metric.estimate.value
        for method in load_report(comparison / "report.json").methods
        for metric in method.metrics
    }
    print(f"\n| | {' | '.join(SHOWN)} |\n|{'---|' * (len(SHOWN) + 1)}")
    for form in FORMS:
        cells = []
        for metric in SHOWN:
            ours, base = ([found[f"{name}-{seed}", metric] for seed in SEEDS] for name in (form, "baseline"))
            gap = paired_difference(ours, base)
            difference = f" ({gap.value:+.2g} ± {gap.high - gap.value:.2g})"
            cells.append(f"{sum(ours) / len(ours):.4g}" + difference * (form != "baseline"))
        print(f"| {form} | {' | '.join(cells)} |")
    for name in ("tiny", "first-frame"):
        print(f"| {name} | {' | '.join(f'{found[name, metric]:.4g}' for metric in SHOWN)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
