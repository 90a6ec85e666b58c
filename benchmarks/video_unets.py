"""Memory and time of our video networks beside diffusers' own: `python -m benchmarks.video_unets`.

    python -m benchmarks.video_unets              timed at the tiny size, counted at Stable Diffusion 1.5's; minutes
    python -m benchmarks.video_unets --rounds 0   counted alone
    python -m benchmarks report                   docs/performance.md and the costs in docs/systems.md from it

Timed on one thread of this machine, in turns in one process: a training step (forward, backward, AdamW) and one forward
pass without gradients, for a clip of 16 frames. A window takes steps times branches of guidance such passes. Peak
memory comes from a process for each network. Counted, without any computing (counting.py): parameters, memory and FLOP
at the sizes of real models. A network is measured only if each of its trained parameters gets a finite gradient.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import counting, environment, measure, memory
from benchmarks.video_networks import FRAMES, NETWORKS, SIZES, TRAINING_ONLY, Batch, Network

RESULTS = Path(__file__).resolve().parent / "results" / "video"
TIMEOUT_S = 600


class Contender:
    """A network with its optimizer and a batch."""

    def __init__(self, name: str, size: str, side: int) -> None:
        torch.manual_seed(0)
        self.network: Network = NETWORKS[name](SIZES[size])
        self.batch = Batch.random(SIZES[size], side)
        self.optimizer = torch.optim.AdamW(self.network.trained, lr=1e-5, fused=True)
        self.network.loss(self.batch).backward()
        for parameter in self.network.trained:
            if parameter.grad is None or not parameter.grad.isfinite().all():
                raise RuntimeError(f"{name}: a trained parameter got no finite gradient; nothing is measured")
        self.optimizer.step()

    def step(self) -> None:
        """One training step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.network.loss(self.batch).backward()
        self.optimizer.step()

    @torch.no_grad()
    def sample(self) -> None:
        """One forward pass."""
        self.network.predict(self.batch)


def timed(function: Callable[[], None]) -> float:
    """Microseconds of processor time, which what else runs on the machine disturbs least."""
    began = time.process_time()
    function()
    return (time.process_time() - began) * 1e6


def time_all(size: str, side: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row a network: the step, the forward pass, and the peaks above the weights and AdamW's moments."""
    contenders = {name: Contender(name, size, side) for name in NETWORKS}
    steps: dict[str, measure.Sampler] = {
        name: functools.partial(timed, one.step) for name, one in contenders.items()
    }  # fmt: skip
    passes: dict[str, measure.Sampler] = {
        name: functools.partial(timed, one.sample) for name, one in contenders.items() if name not in TRAINING_ONLY
    }
    gc.collect()
    training = measure.in_turns(steps, rounds, seconds)
    sampling = measure.in_turns(passes, rounds, seconds)
    return [
        {
            "network": name,
            "size": size,
            "side": side,
            "parameters": sum(part.numel() for part in one.network.module.parameters()),
            "trained": sum(part.numel() for part in one.network.trained),
            "step": _figures(training[name]),
            "forward": _figures(sampling[name]) if name in sampling else None,
            "step_peak": peak(name, size, side, "step"),
            "forward_peak": peak(name, size, side, "sample") if name in sampling else None,
        }
        for name, one in contenders.items()
    ]


def _figures(times: Sequence[float]) -> dict[str, object]:
    return measure.summarize(times, None) | {"least_us": min(times)}


def peak(name: str, size: str, side: int, what: str) -> int | None:
    """Bytes by which the resident memory of a fresh process rises while it makes one step; None where unknown."""
    if not memory.PROCESS.is_dir():
        return None
    # freed blocks go straight back to the system, so that none hides in the heap
    heap = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.video_unets", "--peak", name, size, str(side), what]
    try:
        done = subprocess.run(
            command,
            env=os.environ | heap,
            cwd=environment.ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return int(done.stdout.splitlines()[-1])


def count_all(size: str, sides: Sequence[int]) -> list[dict[str, Any]]:
    """A row a network and latent side, in float32, with and without gradient checkpointing."""
    rows = []
    for side in sides:
        for name, build in NETWORKS.items():
            for checkpointing in (False, True):
                counts = counting.count(build, SIZES[size], side, checkpointing=checkpointing)
                figures = None if counts is None else dataclasses.asdict(counts)
                about = {"network": name, "size": size, "side": side, "checkpointing": checkpointing}
                rows.append(about | {"counts": figures})
                gc.collect()
            print(f"counted {name}, {side} x {side}", flush=True)
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.video_unets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--timed-size", choices=SIZES, default="tiny")
    parser.add_argument("--timed-side", type=int, default=16, help="latent pixels")
    parser.add_argument("--rounds", type=int, default=15, help="0 = no timing")
    parser.add_argument("--seconds", type=float, default=300.0, help="rounds stop after so long, at least 5 are made")
    parser.add_argument("--counted-size", choices=SIZES, default="sd1.5")
    parser.add_argument("--counted-sides", type=int, nargs="*", default=[32, 64], help="latent pixels; none: no counts")
    parser.add_argument("--json", type=Path, help="results file; benchmarks/results/video/DEVICE.json by default")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.peak:
        name, size, side, what = options.peak
        contender = Contender(name, size, int(side))
        contender.optimizer.zero_grad(set_to_none=True)
        print(memory.peak_of(getattr(contender, what)))
        return
    about = environment.describe("cpu") | {"frames": FRAMES, "batch": 1}
    path = options.json or RESULTS / f"{environment.slug(environment.device_name('cpu'))}.json"
    # what is not measured this time stays
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if options.rounds:
        rows = time_all(options.timed_size, options.timed_side, options.rounds, options.seconds)
        results["timed"] = {"about": about, "rows": rows}
        _write(path, results)
    if options.counted_sides:
        rows = count_all(options.counted_size, options.counted_sides)
        results["counted"] = {"about": about, "rows": rows}
        _write(path, results)
    print(path)


def _write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
