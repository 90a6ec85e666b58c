"""Times the Frechet distance from features: ours against torchmetrics, and against scipy's matrix square root.

    OMP_NUM_THREADS=1 python -m benchmarks.frechet --sizes 50000,2048 2048,400 --json out.json

Each contender goes all the way from float32 features to the number, covariances included, in float64. They take turns,
so that a busy machine slows them all; seconds of the processor stand beside those of the clock. Numbers that differ by
more than 1e-6 are refused and nothing is timed. torchmetrics takes batches of 4,096 rows through a network that returns
its input; scipy is used as pytorch-fid does, numpy.cov and scipy.linalg.sqrtm of the product.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy
import scipy.linalg
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.environment import commit, device_name
from contrastive_i2v.evaluation.distribution import frechet_distance

AGREE = 1e-6
BATCH = 4096


def features(rows: int, dimension: int, seed: int, scale: float, shift: float) -> Tensor:
    """Float32 features whose spread falls from 1 to 0.03 over the directions, none of them an axis."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(rows, dimension, generator=generator)
    draw *= torch.logspace(0, -1.5, dimension) * scale
    for mirror in range(3):
        normal = torch.randn(dimension, generator=torch.Generator().manual_seed(1000 + mirror))
        normal /= normal.norm()
        draw.addr_(draw @ normal, normal, alpha=-2)
    return draw + shift


def by_torchmetrics(x: Tensor, y: Tensor) -> float:
    network = torch.nn.Identity()
    network.num_features = x.shape[1]  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=network)
    for of_set, real in ((x, True), (y, False)):
        for batch in of_set.split(BATCH):
            metric.update(batch, real=real)
    return float(metric.compute())


def by_scipy(x: Tensor, y: Tensor) -> float:
    of_x, of_y = (one.numpy() for one in (x, y))
    means = [one.mean(axis=0, dtype=numpy.float64) for one in (of_x, of_y)]
    covariances = [numpy.cov(one, rowvar=False, dtype=numpy.float64) for one in (of_x, of_y)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    gap = means[0] - means[1]
    return float(gap @ gap + sum(numpy.trace(one) for one in covariances) - 2 * numpy.trace(root).real)


CONTENDERS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "ours": frechet_distance,
    "torchmetrics": by_torchmetrics,
    "scipy": by_scipy,
}
PAUSE = 0.2
"""Seconds before each run: the threads of the one before, torch's or OpenBLAS's, spin for a while before they sleep."""


def measure(rows: int, dimension: int, seconds: float) -> list[dict[str, object]]:
    x, y = features(rows, dimension, 0, 1.0, 0.0), features(rows, dimension, 1, 1.1, 0.01)
    where = f"N = {rows:6d}  d = {dimension:5d}"
    values = {name: run(x, y) for name, run in CONTENDERS.items()}
    errors = {name: abs(value / values["ours"] - 1) for name, value in values.items()}
    print(f"{where}  " + "  ".join(f"{name} {value:.9g}" for name, value in values.items()), flush=True)
    if not max(errors.values()) <= AGREE:
        raise SystemExit(f"{where}  refused: the numbers are further apart than {AGREE}: {errors}")
    clock: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    processor: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    end = time.perf_counter() + seconds * len(CONTENDERS)
    while not clock["ours"] or time.perf_counter() < end:
        for name, run in CONTENDERS.items():
            time.sleep(PAUSE)
            before = time.perf_counter(), time.process_time()
            run(x, y)
            clock[name].append(time.perf_counter() - before[0])
            processor[name].append(time.process_time() - before[1])
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    table: list[dict[str, object]] = []
    medians: dict[str, tuple[float, float]] = {}
    for name in CONTENDERS:
        p20, median, p80 = torch.tensor(clock[name], dtype=torch.float64).quantile(levels).tolist()
        busy = float(torch.tensor(processor[name], dtype=torch.float64).quantile(0.5))
        medians[name] = median, busy
        ratio, busy_ratio = median / medians["ours"][0], busy / medians["ours"][1]
        print(
            f"{where}  {name:12s} {median:9.4f} s  [{p20:.4f}, {p80:.4f}]  {ratio:6.2f}x   processor {busy:9.4f} s "
            f"{busy_ratio:6.2f}x  runs {len(clock[name])}  from ours {errors[name]:.1e}",
            flush=True,
        )
        about = {"rows": rows, "dimension": dimension, "provider": name}
        found = {"value": values[name], "from_ours": errors[name]}
        times = {"median_s": median, "p20_s": p20, "p80_s": p80, "processor_s": busy, "runs": len(clock[name])}
        table.append({**about, **found, **times})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frechet", description=__doc__)
    parser.add_argument(
        "--sizes", nargs="+", type=lambda text: tuple(map(int, text.split(","))), help="N,d",
        default=[(50_000, 2048), (2048, 400)],
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="of torch; numpy and scipy go by OMP_NUM_THREADS")
    parser.add_argument("--seconds", type=float, default=5.0, help="time that each contender takes, at least one run")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", category=UserWarning, module="torchmetrics")
    rows = [row for size in arguments.sizes for row in measure(*size, arguments.seconds)]
    if arguments.json:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "torchmetrics", "numpy", "scipy")}
        about = {"device": device_name("cpu"), "versions": versions, "commit": commit(), "agree": AGREE}
        arguments.json.write_text(json.dumps({**about, "results": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
