"""Speed, memory and accuracy of `contrastive_diffusion_loss` beside the alternatives.

    python -m benchmarks --preset cpu                 the sizes of the goals, minutes
    python -m benchmarks --preset gpu                 on a GPU, minutes
    python -m benchmarks --sizes 16 48 --dtype bfloat16 --cache cold --providers eager ours:cpu
    python -m benchmarks report                       docs/performance.md from benchmarks/results/*.json

A result whose gradient or loss is further from float64 than twice eager's in the same dtype is refused and not timed.
The results file is whole after every case; --resume goes on where a run was interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import environment, measure, presets, report, unet_step
from benchmarks.goals import bytes_text, microseconds
from benchmarks.presets import PRESETS, UNCOUNTED, Plan
from benchmarks.problems import DTYPES, Case
from benchmarks.registry import Provider, providers
from benchmarks.results import Results, Row
from benchmarks.run import Effort, count_all_kernels, run_case

RESULTS = Path(__file__).resolve().parent / "results"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, help="a list of cases; the options for cases are then not read")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 48, 192, 768], help="B = N")
    parser.add_argument("--elements", type=int, nargs="+", default=[4096], help="D, elements of one latent")
    parser.add_argument("--banks", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["float32"])
    parser.add_argument("--normalize", action="store_true", help="cosine instead of dot product")
    parser.add_argument("--cache", choices=["hot", "cold"], default="hot")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="the preset's, or else cpu")
    parser.add_argument("--providers", nargs="+", help="names, or how they begin; all by default")
    parser.add_argument("--unet", nargs="*", choices=unet_step.UNETS, help="UNets to put the loss into")
    parser.add_argument("--unet-size", type=int, default=16, help="batch in the UNet")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=8.0, help="a case's rounds stop after so long")
    parser.add_argument("--budget", type=float, help="no case begins after so many seconds")
    parser.add_argument("--threads", type=int, help="for PyTorch on the CPU; the CPU goals are for 2")
    parser.add_argument("--bf16", nargs="+", default=[], help="time ours:cpu again with each as CI2V_CPU_BF16")
    parser.add_argument(
        "--max-isa", help="what PyTorch's library may use on the CPU (ONEDNN_MAX_CPU_ISA), as avx512_core_bf16"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="time the process, not the clock, on one thread: where others run too"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory as well; presets decide themselves")
    parser.add_argument("--json", type=Path, help="results file; benchmarks/results/DEVICE-DATE.json by default")
    parser.add_argument("--resume", action="store_true", help="keep what the results file holds and measure the rest")
    parsed = parser.parse_args(arguments)
    parsed.device = parsed.device or PRESETS.get(parsed.preset) or "cpu"
    if parsed.cpu_time and (parsed.device != "cpu" or parsed.threads != 1):
        parser.error("--cpu-time needs --device cpu and --threads 1: threads that wait for each other count too")
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    return parsed


def plans_of(arguments: argparse.Namespace) -> list[Plan]:
    if arguments.preset:
        return presets.named(arguments.preset, arguments.device)
    return [
        Plan(
            case=Case(
                size=size, elements=elements, banks=arguments.banks, dtype=dtype, normalize=arguments.normalize,
                cache=arguments.cache, device=arguments.device,
            ),
            memory=arguments.memory,
        )
        for dtype in arguments.dtype for elements in arguments.elements for size in arguments.sizes
    ]  # fmt: skip


def open_results(arguments: argparse.Namespace) -> tuple[Results, Path]:
    """The file to write to; what it already holds is kept only with --resume."""
    about = environment.describe(arguments.device)
    if arguments.cpu_time:
        about["device"]["name"] += ", CPU time"  # type: ignore[index]
    about["settings"] = {
        name: getattr(arguments, name) for name in ("preset", "rounds", "seconds", "budget")
    }  # fmt: skip
    path = arguments.json or RESULTS / f"{environment.slug(about['device']['name'])}-{about['date']}.json"  # type: ignore[index]
    if not path.exists():
        return Results(about=about), path
    if not arguments.resume:
        sys.exit(f"{path} exists: --resume adds to it, --json names another file")
    results = Results.load(path)
    if why_not := results.why_not_resume(about):
        sys.exit(f"{path} cannot be resumed: {why_not}. --json names another file")
    return results, path


def progress(total: int):  # type: ignore[no-untyped-def]
    """A bar with the time left, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit="case", file=sys.stderr, dynamic_ncols=True)


def show(row: Row) -> str:
    """One line of the table."""
    if row["status"] != "timed":
        return f"  {row['provider']:28s} {row['status']}: {row['reason']}"
    line = f"  {row['provider']:28s}"
    for mode in ("called", "graph"):
        figures = row.get(mode, {})
        if "median_us" in figures:
            line += f" {mode} {microseconds(figures['median_us']):>10s}"
            line += f" [{microseconds(figures['p20_us'])}, {microseconds(figures['p80_us'])}]"
            if "speedup" in figures:
                line += f" {figures['speedup']['median']:.2f}x"
    if row.get("gradient_error") is not None:
        line += f"  error {row['gradient_error']:.1e}"
    if row.get("extra_bytes") is not None:
        line += f"  extra {bytes_text(row['extra_bytes'])}"
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["report"]:
        return report.main(arguments[1:])
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.max_isa:  # read at the library's first use
        os.environ["ONEDNN_MAX_CPU_ISA"] = options.max_isa.upper()
    clock = time.process_time if options.cpu_time else time.perf_counter
    started = time.monotonic()
    results, path = open_results(options)
    plans = plans_of(options)
    everyone = providers(options.device, options.bf16)
    results.absent = {name: why for name, why in everyone.items() if isinstance(why, str)}
    for name, why in results.absent.items():
        print(f"{name}: absent: {why}")
    dtypes = sorted({plan.case.dtype for plan in plans if f"flop_per_s_{plan.case.dtype}" not in results.ceilings})
    if dtypes:
        results.ceilings = measure.ceilings(options.device, dtypes, clock) | results.ceilings
    bar = progress(len(plans))

    def say(text: str) -> None:
        if bar is None:
            print(text, flush=True)
        else:
            bar.write(text, file=sys.stdout)

    def takers(plan: Plan) -> dict[str, Provider]:
        """Who takes part in a case."""
        wanted = tuple(options.providers or everyone)
        return {
            name: one
            for name, one in everyone.items()
            if isinstance(one, Provider) and plan.takes(name) and name.startswith(wanted)
        }

    late = []
    for plan in plans:
        contenders = takers(plan)
        if options.budget is not None and time.monotonic() - started > options.budget:
            late.append(str(plan.case))
        elif not results.done(plan.case, list(contenders)):
            effort = Effort(
                rounds=min(plan.rounds or options.rounds, options.rounds), seconds=options.seconds, memory=plan.memory,
                cache_bytes=environment.cache_bytes(options.device),
                clock=clock,
            )  # fmt: skip
            tick = (lambda what, case=plan.case: bar.set_description(f"{case}: {what}")) if bar else (lambda what: None)
            rows = run_case(plan.case, contenders, effort, tick)
            results.add(plan.case, rows)
            results.save(path)
            for line in (str(plan.case), *map(show, rows)):
                say(line)
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
    for case in late:
        print(f"not measured, out of time: {case}")
    run_unets(options, results, path)
    if options.device == "cuda":
        for plan in plans:
            if plan.kernels:
                counted = {name: one for name, one in takers(plan).items() if not name.startswith(UNCOUNTED)}
                count_all_kernels(plan.case, counted, results.of(plan.case))
        results.save(path)
    print(path)


def run_unets(options: argparse.Namespace, results: Results, path: Path) -> None:
    names = options.unet
    if names is None:
        names = {"cpu": ["tiny"], "gpu": ["tiny", "sd1.5"]}.get(options.preset, [])
    if names and (why_not := unet_step.why_not()):
        results.absent["UNet step"] = why_not
        print(f"UNet step: absent: {why_not}")
        names = []
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    for name in names:
        if any(row["unet"] == name and row["size"] == options.unet_size for row in results.unet_steps):
            continue
        effort = Effort(rounds=options.rounds, seconds=2 * options.seconds)
        rows = unet_step.run_unet(name, options.unet_size, dtype, options.device, effort)
        results.unet_steps += rows
        print(f"UNet {name}, B={options.unet_size}, {dtype}")
        for row in rows:
            share = f"{100 * row['share']['median']:.2f} %" if "share" in row else row["status"]
            step = microseconds(row["step"]["median_us"]) if "step" in row else ""
            loss = microseconds(row["loss"]["median_us"]) if "loss" in row else ""
            print(f"  {row['provider']:28s} step {step:>10s}  loss {loss:>10s}  share {share}")
    results.save(path)


if __name__ == "__main__":
    main()
