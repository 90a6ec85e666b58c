"""The plots of a results file as SVG: time, speed against the roofline, memory, error. The same rows give the same
bytes. Needs matplotlib (`pip install "contrastive_i2v[bench]"`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.registry import COMPILE, EAGER, GEMM, OURS
from benchmarks.results import Results, Row

COLORS = {
    f"{OURS}cpu": "#c2410c", f"{OURS}cuda": "#c2410c", f"{OURS}triton": "#7c3aed", f"{OURS}reference": "#d6a77a",
    EAGER: "#334155", COMPILE: "#2563eb", f"{COMPILE} reduce-overhead": "#0ea5e9", GEMM: "#9ca3af",
    "Inf-CL": "#16a34a", "Cut Cross Entropy": "#65a30d", "Liger": "#db2777", "quack": "#ca8a04",
}  # fmt: skip
STYLE = {
    "svg.hashsalt": "contrastive_i2v", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6, "axes.edgecolor": "#9ca3af", "axes.titlesize": 9, "legend.frameon": False,
    "lines.linewidth": 1.4, "lines.markersize": 4, "axes.axisbelow": True,
}  # fmt: skip


def draw(results: Results, folder: Path, suffix: str = "svg") -> dict[str, Path]:
    """Writes the plots that the rows allow into `folder`; returns title -> file."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        figures = {
            "time": ("Time of forward and backward, eager's = 1", _time, False),
            "roofline": ("Speed against the roofline", _roofline, True),
            "memory": ("Memory above inputs and gradient", _memory, False),
            "error": ("Gradient error against float64, twice eager's = 1", _error, False),
        }
        written = {}
        for name, (title, plot, needs_time) in figures.items():
            rows = main_rows(results, plot)
            if rows and (not needs_time or results.ceilings):
                written[title] = _figure(results, rows, plot, folder / f"{name}.{suffix}")
        return written


def main_rows(results: Results, plot: Callable[..., Any]) -> list[Row]:
    """Two banks of D = 4096, dot product, in the cache state with the most sizes, where the plot has a value."""
    value = _VALUES[plot]
    rows = [
        row
        for row in results.rows
        if row["case"]["elements"] == 4096 and row["case"]["banks"] == 2 and not row["case"]["normalize"]
        and value(row) is not None
    ]  # fmt: skip
    caches = {row["case"]["cache"] for row in rows}
    sizes = {cache: len({row["case"]["size"] for row in rows if row["case"]["cache"] == cache}) for cache in caches}
    best = max(sorted(caches), key=lambda cache: sizes[cache], default="")
    return [row for row in rows if row["case"]["cache"] == best]


def best_time(row: Row) -> float | None:
    """Graph replay where there is one, else as called."""
    for mode in ("graph", "called"):
        if "median_us" in row.get(mode, {}):
            return float(row[mode]["median_us"])
    return None


def over_eager(row: Row) -> float | None:
    """Time over eager's in the same mode, paired by round."""
    if row["provider"] == EAGER:
        return 1.0
    for mode in ("graph", "called"):
        if "speedup" in row.get(mode, {}):
            return 1 / float(row[mode]["speedup"]["median"])
    return None


def _extra(row: Row) -> float | None:
    return row["extra_bytes"] / 2**20 if row.get("extra_bytes") else None


def _figure(results: Results, rows: Sequence[Row], plot: Callable[..., None], path: Path) -> Path:
    import matplotlib.pyplot as plt

    dtypes = sorted({row["case"]["dtype"] for row in rows}, key=("float32", "bfloat16", "float16").index)
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(4.2 * len(dtypes) + 0.4, 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        axis.set_title(dtype, loc="left")
        plot(axis, results, [row for row in rows if row["case"]["dtype"] == dtype], dtype)
    handles = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 4))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)
    return path


def _lines(axis: Any, rows: Sequence[Row], value: Callable[[Row], float | None]) -> None:
    for name in [name for name in COLORS if any(row["provider"] == name for row in rows)]:
        mine = sorted((row for row in rows if row["provider"] == name), key=lambda row: row["case"]["size"])
        sizes = [row["case"]["size"] for row in mine]
        ours = name.startswith(OURS) and not name.endswith("reference")
        axis.plot(
            sizes, [value(row) for row in mine], "--" if name == GEMM else "o-", color=COLORS[name], label=name,
            zorder=3 if ours else 2, linewidth=2.2 if ours else 1.3,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    sizes = sorted({row["case"]["size"] for row in rows})
    axis.set_xticks(sizes, [str(size) for size in sizes], rotation=45 if len(sizes) > 6 else 0)
    axis.minorticks_off()
    axis.set_xlabel("B = N")


def _time(axis: Any, results: Results, rows: Sequence[Row], dtype: str) -> None:
    from matplotlib.ticker import LogLocator

    _lines(axis, rows, over_eager)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("time / eager's")


def _memory(axis: Any, results: Results, rows: Sequence[Row], dtype: str) -> None:
    _lines(axis, rows, _extra)
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("MiB")


def _error(axis: Any, results: Results, rows: Sequence[Row], dtype: str) -> None:
    _lines(axis, rows, lambda row: row["gradient_error"] / row["gradient_bar"])
    axis.set_yscale("linear")
    axis.set_ylim(0, 1.05)
    axis.axhline(1, linestyle=":", color="#dc2626", label="refused above")
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("error / bar")


def _roofline(axis: Any, results: Results, rows: Sequence[Row], dtype: str) -> None:
    """FLOP/s over FLOP a byte; the roof is what this device reached on a copy and on a large matrix product."""
    compute, bandwidth = results.ceilings[f"flop_per_s_{dtype}"], results.ceilings["bytes_per_s"]
    intensities = sorted({row["flop"] / row["bytes"] for row in rows})
    ends = [intensities[0] / 2, max(intensities[-1] * 2, compute / bandwidth)]
    ridge = [point for point in (ends[0], compute / bandwidth, ends[1]) if ends[0] <= point <= ends[1]]
    axis.plot(
        ridge, [min(compute, bandwidth * point) / 1e9 for point in ridge], color="#111827", linewidth=1, label="roof"
    )
    for name in [name for name in COLORS if any(row["provider"] == name for row in rows)]:
        mine = sorted((row for row in rows if row["provider"] == name), key=lambda row: row["case"]["size"])
        times = [best_time(row) for row in mine]
        axis.plot(
            [row["flop"] / row["bytes"] for row in mine],
            [row["flop"] / taken / 1e3 for row, taken in zip(mine, times, strict=True) if taken],
            "--" if name == GEMM else "o-", color=COLORS[name], label=name,
            zorder=3 if name.startswith(OURS) else 2,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("FLOP a byte")
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("GFLOP/s")


_VALUES: dict[Callable[..., Any], Callable[[Row], float | None]] = {
    _time: over_eager,
    _roofline: best_time,
    _memory: _extra,
    _error: lambda row: row.get("gradient_error"),
}
