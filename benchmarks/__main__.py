"""Runs every provider at every size and prints a table; `--json` also writes it.

A result whose gradient is further from float64 than twice eager's in the same dtype is refused and not timed.

    python -m benchmarks --sizes 16 48 192 768 --json out.json
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

from benchmarks.measure import relative_error, time_step
from benchmarks.registry import Problem, eager, providers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()} ({torch.get_num_threads()} threads)"


def run(arguments: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for size in arguments.sizes:
        problem = Problem.random(
            size,
            arguments.elements,
            arguments.banks,
            DTYPES[arguments.dtype],
            arguments.device,
            arguments.normalize,
        )
        _, truth = eager(problem.double())()
        bar = 2 * relative_error(eager(problem)()[1], truth)
        flop = 4 * arguments.banks * size * size * arguments.elements
        for name, provider in providers(arguments.device).items():
            if arguments.only and name not in arguments.only:
                continue
            step = provider(problem)
            error = relative_error(step()[1], truth)
            row: dict[str, object] = {"provider": name, "size": size, "gradient_error": error, "bar": bar}
            if error <= bar:
                timed = time_step(step, arguments.device, arguments.seconds)
                assert timed["median_us"]
                row |= {**timed, "gflop_per_s": round(flop / timed["median_us"] / 1e3, 1)}
                print(f"{size:6d}  {name:16s} {timed['median_us']:12.1f} us  [{timed['p20_us']:.1f}, "
                      f"{timed['p80_us']:.1f}]  {row['gflop_per_s']} GFLOP/s  error {error:.1e}")  # fmt: skip
            else:
                row["refused"] = "gradient error above the bar"
                print(f"{size:6d}  {name:16s} refused: gradient error {error:.1e} is above the bar {bar:.1e}")
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 48, 192, 768], help="B = N")
    parser.add_argument("--elements", type=int, default=4096, help="D, elements of one latent")
    parser.add_argument("--banks", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--normalize", action="store_true", help="cosine instead of dot product")
    parser.add_argument("--seconds", type=float, default=1.0, help="time a measurement takes")
    parser.add_argument("--only", nargs="*", help="providers to run; all by default")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    rows = run(arguments)
    if arguments.json:
        setting = {name: str(value) for name, value in vars(arguments).items() if name not in ("json", "only")}
        about = {**setting, "device": device_name(arguments.device), "torch": torch.__version__, "cache": "hot"}
        arguments.json.write_text(json.dumps({**about, "results": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
