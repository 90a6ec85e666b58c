"""The speeds and memory that this project aims for, and whether a results file meets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.problems import Case
from benchmarks.registry import BF16_SWITCH, COMPILE, EAGER, OURS
from benchmarks.results import Results, Row

GIB = 1 << 30
_REFERENCE = f"{OURS}reference"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One line of the table: what is aimed for, and how to read it off a case's rows."""

    case: Case
    what: str
    measure: Callable[[Sequence[Row]], float | None]
    """From the rows of the case to the figure; None when it wasn't measured."""
    target: float
    at_least: bool
    show: Callable[[float], str]

    def outcome(self, results: Results) -> tuple[str, str]:
        """(measured, "met" | "not met" | "not measured")."""
        value = self.measure(results.of(self.case))
        if value is None:
            return "", "not measured"
        met = value >= self.target if self.at_least else value <= self.target
        return self.show(value), "met" if met else "not met"

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.show(self.target)}"


def _row(rows: Sequence[Row], provider: str) -> Row | None:
    return next((row for row in rows if row["provider"] == provider and row["status"] == "timed"), None)


def ours(rows: Sequence[Row], mode: str = "called") -> Row | None:
    """The fastest of our kernels, but for the reference and what a switch chose."""
    mine = [
        row
        for row in rows
        if row["provider"].startswith(OURS)
        and row["provider"] != _REFERENCE
        and BF16_SWITCH not in row["provider"]
        and "median_us" in row.get(mode, {})
    ]
    return min(mine, key=lambda row: float(row[mode]["median_us"]), default=None)


def _speedup(rows: Sequence[Row]) -> float | None:
    mine = ours(rows)
    return mine["called"].get("speedup", {}).get("median") if mine else None


def _over_the_faster(rows: Sequence[Row]) -> float | None:
    """Of eager and torch.compile, both of which must have been measured."""
    mine, others = ours(rows), [_row(rows, EAGER), _row(rows, COMPILE)]
    if mine is None or None in others:
        return None
    fastest = min(float(row["called"]["median_us"]) for row in others if row is not None)
    return fastest / float(mine["called"]["median_us"])


def _memory_ratio(rows: Sequence[Row]) -> float | None:
    mine, theirs = ours(rows), _row(rows, EAGER)
    if mine is None or theirs is None or mine.get("extra_bytes") is None or not theirs.get("extra_bytes"):
        return None
    return float(mine["extra_bytes"]) / float(theirs["extra_bytes"])


def _time(mode: str) -> Callable[[Sequence[Row]], float | None]:
    def measure(rows: Sequence[Row]) -> float | None:
        mine = ours(rows, mode)
        return float(mine[mode]["median_us"]) if mine else None

    return measure


def _extra(rows: Sequence[Row]) -> float | None:
    mine = ours(rows)
    return mine.get("extra_bytes") if mine else None


def _kernels(rows: Sequence[Row]) -> float | None:
    mine = ours(rows, "graph")
    return mine.get("kernels") if mine else None


def _times(value: float) -> str:
    return f"{value:.2f}x"


def microseconds(value: float) -> str:
    return f"{value:.1f} us" if value < 1000 else f"{value / 1000:.2f} ms"


def bytes_text(value: float) -> str:
    return f"{value / GIB:.2f} GiB" if value >= GIB / 10 else f"{value / (1 << 20):.1f} MiB"


def _cpu() -> list[Goal]:
    goals = []
    for banks, normalize in ((2, False), (2, True), (1, False)):
        for dtype, targets in {
            "float32": {16: 4.0, 48: 3.0, 192: 1.5, 768: 1.1},
            "bfloat16": {16: 3.0, 48: 3.0},
        }.items():
            for size, target in targets.items():
                case = Case(size=size, dtype=dtype, banks=banks, normalize=normalize)
                goals.append(
                    Goal(
                        case=case, what="speed-up over eager",
                        measure=_speedup, target=target, at_least=True, show=_times,
                    )
                )  # fmt: skip
    for size in (16, 48, 192, 768):
        goals.append(
            Goal(
                case=Case(size=size, dtype="bfloat16"), what="over the faster of eager and torch.compile",
                measure=_over_the_faster, target=1.0, at_least=True, show=_times,
            )
        )  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        goals.append(
            Goal(
                case=Case(size=4096, dtype=dtype), what="extra memory over eager's",
                measure=_memory_ratio, target=0.1, at_least=False, show=lambda value: f"{value:.3f}",
            )
        )  # fmt: skip
    return goals


def _gpu() -> list[Goal]:
    def case(size: int) -> Case:
        return Case(size=size, dtype="bfloat16", cache="cold", device="cuda")

    def goal(size: int, what: str, measure: Callable[[Sequence[Row]], float | None], target: float,
             show: Callable[[float], str] = microseconds) -> Goal:  # fmt: skip
        return Goal(case=case(size), what=what, measure=measure, target=target, at_least=False, show=show)

    return [
        goal(16, "graph replay", _time("graph"), 8.0),
        goal(16, "kernels", _kernels, 3, lambda value: f"{value:.0f}"),
        goal(16, "called", _time("called"), 40.0),
        goal(256, "graph replay", _time("graph"), 15.0),
        goal(4096, "called", _time("called"), 850.0),
        goal(32768, "called", _time("called"), 49_500.0),
        goal(32768, "called, stretch", _time("called"), 47_400.0),
        goal(65536, "memory above inputs and gradient", _extra, 0.6 * GIB, bytes_text),
    ]


CPU_GOALS = _cpu()
"""On two threads."""
GPU_GOALS = _gpu()
"""On one H200, with cold caches."""


def goals_for(results: Results) -> list[Goal]:
    if results.about["device"]["type"] == "cuda":
        return GPU_GOALS
    return CPU_GOALS if results.about["threads"] == 2 else []
