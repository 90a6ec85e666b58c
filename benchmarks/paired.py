"""Is this checkout slower than that one? `python -m benchmarks.paired WORK --old PYTHON --new PYTHON`.

PYTHON is the interpreter of an environment in which a checkout is installed. The two take turns, A B A B, so that a
machine whose speed drifts treats both alike: a training step (the packaged model, contrastive, 16 windows a batch, from
the run's own log, which counts neither start-up nor encoding) and a rollout's frame (four videos of 34 frames less four
of 2, whole processes). Prints the median of each and the pairwise ratio new / old with its range.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path


def run(python: str, *arguments: object) -> float:
    """Seconds that a command takes, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    call = [python, "-m", "contrastive_i2v", *map(str, arguments)]
    began = time.perf_counter()
    done = subprocess.run(call, env=environment, capture_output=True, text=True, cwd="/")
    if done.returncode:
        sys.exit(f"{' '.join(call)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def step_seconds(python: str, work: Path, steps: int) -> float:
    """Seconds of a training step."""
    output = work / "run"
    shutil.rmtree(output, ignore_errors=True)
    data = ["--data.path", work / "clips" / "train", "--data.cache-dir", work / "latents"]
    length = ["--steps", steps, "--checkpoint-every", steps, "--log-every", steps]
    run(python, "train", "--recipe", "tiny-contrastive", *data, *length, "--output", output)
    return 16 / json.loads((output / "log.jsonl").read_text().splitlines()[-1])["samples_per_second"]


def frame_seconds(python: str, work: Path) -> float:
    """Seconds of a frame of four videos made together."""
    image = work / "clips" / "test" / "00000.mp4"
    given = ["--image", *[image] * 4, "--prompt", "a red star moves up quickly", "--formats", "latents"]
    given += ["--steps", 8, "--guidance-scale", 1, "--image-guidance-scale", 1, "--output", work / "videos"]
    long, short = (run(python, "sample", *given, "--frames", frames) for frames in (34, 2))
    return (long - short) / 32


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--old", required=True)
    parser.add_argument("--new", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    if not (options.work / "clips").exists():
        run(options.old, "shapes", "--output", options.work / "clips", "--train-clips", 24, "--test-clips", 2)
    found: dict[str, dict[str, list[float]]] = {"training step": {}, "rollout frame": {}}
    for _ in range(options.rounds):
        for name, python in (("old", options.old), ("new", options.new)):
            found["training step"].setdefault(name, []).append(step_seconds(python, options.work, options.steps))
            found["rollout frame"].setdefault(name, []).append(frame_seconds(python, options.work))
    for what, times in found.items():
        ratios = [new / old for old, new in zip(times["old"], times["new"], strict=True)]
        medians = ", ".join(f"{name} {1000 * statistics.median(values):.1f} ms" for name, values in times.items())
        print(
            f"{what}: {medians}; new / old {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs)"
        )


if __name__ == "__main__":
    main()
