"""docs/performance.md and the costs in docs/systems.md from benchmarks/results: `python -m benchmarks report`.

What lies between the two markers is generated, the rest of the page is written by hand. The newest file of each device
is shown. Every figure comes from a file; nothing is rounded up and nothing is left out.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import data_report, environment, plots, rollout_report, video_report
from benchmarks.goals import bytes_text, goals_for, microseconds
from benchmarks.problems import Case
from benchmarks.results import Results, Row, case_of

BEGIN = "<!-- generated: python -m benchmarks report -->"
END = "<!-- end of the generated part -->"


def newest(folder: Path) -> dict[str, Results]:
    """Device -> its newest results."""
    found: dict[str, Results] = {}
    for path in sorted(folder.glob("*.json")):
        results = Results.load(path)
        name = results.about["device"]["name"]
        if name not in found or found[name].about["date"] <= results.about["date"]:
            found[name] = results
    return found


def render(results: dict[str, Results], images: Path, page: Path) -> str:
    """The generated part, in Markdown; draws the plots into a folder of `images` for each device."""
    if not results:
        return "No results yet: `python -m benchmarks --preset cpu` makes some."
    parts = [_section(name, one, images, page) for name, one in results.items()]
    if not any(one.about["device"]["type"] == "cuda" for one in results.values()):
        parts.append(
            "## GPU\n\nNot measured yet: no GPU has run this. `make gpu` builds, tests and measures everything on a "
            "machine that has one."
        )
    return "\n\n".join(parts)


def _section(name: str, results: Results, images: Path, page: Path) -> str:
    about = results.about
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    commit = f", commit {about['commit']}" if about["commit"] else ""
    parts = [f"## {name}\n\n{about['date']}, {versions}{commit}."]
    if results.ceilings:
        rates = {key.removeprefix("flop_per_s_"): rate for key, rate in results.ceilings.items() if "flop" in key}
        parts.append(
            f"Ceilings, measured in the same run: a large copy moves {results.ceilings['bytes_per_s'] / 1e9:.3g} GB/s "
            "(read and written), a large matrix product reaches "
            + ", ".join(f"{rate / 1e9:.3g} GFLOP/s in {dtype}" for dtype, rate in rates.items())
            + "."
        )
    if goals_for(results):
        parts.append("### Goals\n\n" + _goals(results))
    folder = images / environment.slug(name)
    for title, path in _plots(results, folder).items():
        parts.append(f"![{title}]({os.path.relpath(path, page.parent)})")
    if results.unet_steps:
        parts.append("### In a UNet's training step\n\n" + _unet(results.unet_steps))
    parts.append("### Every figure\n\n" + _cases(results.rows))
    if results.absent:
        parts.append("Absent: " + "; ".join(f"{who}: {why}" for who, why in results.absent.items()) + ".")
    return "\n\n".join(parts)


def frechet(folder: Path) -> str:
    """The table of `python -m benchmarks.frechet`; "" without results."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        ours = 0.0
        for row in found["results"]:
            ours = row["median_s"] if row["provider"] == "ours" else ours
            problem = f"N={row['rows']} d={row['dimension']}"
            spread = f"{row['median_s']:.4g} s [{row['p20_s']:.4g}, {row['p80_s']:.4g}]"
            ratio = f"{row['median_s'] / ours:.2f}x"
            error = f"{row['from_ours']:.1e}"
            lines.append([found["device"], problem, row["provider"], spread, ratio, error, str(row["runs"])])
    if not lines:
        return ""
    header = ["device", "problem", "", "time: median [p20, p80]", "of ours", "relative difference", "runs"]
    return (
        "## Frechet distance\n\n`python -m benchmarks.frechet`, from float32 features to the distance, in turns in "
        f"one process; {versions}.\n\n{table(header, lines)}"
    )


def _plots(results: Results, folder: Path) -> dict[str, Path]:
    try:
        return plots.draw(results, folder)
    except ImportError:
        print('no plots: matplotlib is missing; pip install "contrastive_i2v[bench]"')
        return {}


def _goals(results: Results) -> str:
    lines = [
        [str(goal.case), goal.what, str(goal), *goal.outcome(results)]
        for goal in goals_for(results)
    ]  # fmt: skip
    return table(["case", "figure", "goal", "measured", ""], lines)


def _unet(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        network = f"{row['unet']} ({row['parameters'] / 1e6:.1f} M), B={row['size']}, {row['dtype']}"
        if "step" not in row:
            lines.append([network, row["provider"], f"{row['status']}: {row['reason']}", "", ""])
            continue
        share = row["share"]
        lines.append(
            [
                network,
                row["provider"],
                _spread(row["step"]),
                _spread(row["loss"]),
                f"{100 * share['median']:.2f} % [{100 * share['p20']:.2f}, {100 * share['p80']:.2f}]",
            ]
        )
    return table(["UNet", "loss", "step", "loss and its gradient", "share of the step"], lines)


def _cases(rows: Sequence[Row]) -> str:
    """One table a case, folded away."""
    cases = list(dict.fromkeys(case_of(row) for row in rows))
    return "\n\n".join(_case(case, [row for row in rows if case_of(row) == case]) for case in cases)


def _case(case: Case, rows: Sequence[Row]) -> str:
    on_gpu = any("graph" in row for row in rows)
    header = ["provider", "called: median [p20, p80]", "over eager"]
    header += ["graph replay", "kernels"] if on_gpu else []
    header += ["GFLOP/s", "memory above inputs", "gradient error"]
    lines = []
    for row in rows:
        if row["status"] != "timed":
            reason = str(row["reason"]).replace("|", "\\|")
            lines.append([row["provider"], f"{row['status']}: {reason}", *[""] * (len(header) - 2)])
            continue
        cells = [row["provider"], _spread(row["called"]), _speedup(row["called"])]
        if on_gpu:
            cells += [_spread(row.get("graph", {})), str(row.get("kernels") or "")]
        taken = plots.best_time(row)
        cells.append(f"{row['flop'] / taken / 1e3:.4g}" if taken else "")
        cells.append(bytes_text(row["peak_bytes"]) if row.get("peak_bytes") is not None else "")
        cells.append(f"{row['gradient_error']:.1e}" if row.get("gradient_error") is not None else "")
        lines.append(cells)
    bar = next((row["gradient_bar"] for row in rows if "gradient_bar" in row), None)
    checked = next((row["rows_checked"] for row in rows if "rows_checked" in row), case.size)
    note = f"bar {bar:.1e}" if bar is not None else ""
    note += f", gradient checked at {checked} random queries" if checked < case.size else ""
    return f"<details><summary>{case}</summary>\n\n{table(header, lines)}\n\n{note}\n\n</details>"


def _spread(figures: dict[str, Any]) -> str:
    if "median_us" not in figures:
        return str(figures.get("reason", ""))
    return (
        f"{microseconds(figures['median_us'])} [{microseconds(figures['p20_us'])}, {microseconds(figures['p80_us'])}]"
    )


def _speedup(figures: dict[str, Any]) -> str:
    speedup = figures.get("speedup")
    return f"{speedup['median']:.2f}x [{speedup['p20']:.2f}, {speedup['p80']:.2f}]" if speedup else ""


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def replace_generated(page: str, generated: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """`page` with what lies between the markers replaced."""
    before, begin, rest = page.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise ValueError(f"the page lacks the markers {markers[0]} and {markers[1]}")
    return f"{before}{begin}\n\n{generated}\n\n{end}{after}"


def write_costs(page: Path, results: Path) -> None:
    """Put the costs of the systems into their page."""
    markers = (video_report.BEGIN, video_report.END)
    text = replace_generated(page.read_text(encoding="utf-8"), video_report.costs(results), markers)
    page.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    root = environment.ROOT
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("--results", type=Path, default=root / "benchmarks" / "results", help="folder of JSON files")
    parser.add_argument("--page", type=Path, default=root / "docs" / "performance.md")
    parser.add_argument("--systems", type=Path, help="None = systems.md beside the page, where there is one")
    parser.add_argument("--images", type=Path, default=root / "docs" / "images" / "performance")
    options = parser.parse_args(arguments)
    parts = [render(newest(options.results), options.images, options.page), frechet(options.results / "frechet")]
    parts.append(video_report.performance(options.results / "video"))
    parts.append(rollout_report.performance(options.results / "rollout"))
    parts.append(data_report.performance(options.results / "data"))
    generated = "\n\n".join(filter(None, parts))
    options.page.write_text(replace_generated(options.page.read_text(encoding="utf-8"), generated), encoding="utf-8")
    print(options.page)
    systems = options.systems or options.page.with_name("systems.md")
    if systems.exists():
        write_costs(systems, options.results / "video")
        print(systems)


if __name__ == "__main__":
    main()
