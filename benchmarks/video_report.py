"""What the pages say of `python -m benchmarks.video_unets`, made from its results by `python -m benchmarks report`.

Needs the results files alone. GB are 10^9 bytes, TFLOP 10^12; a product and its sum are two FLOP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.goals import bytes_text, microseconds

BEGIN = "<!-- generated: python -m benchmarks report, the costs of the systems -->"
END = "<!-- end of the costs -->"
RATE = 100e12
"""FLOP a second, for orders of magnitude."""


@dataclass(frozen=True)
class Sampling:
    """How a system samples 16 frames by default."""

    name: str
    network: str
    """In the results."""
    steps: int
    branches: int
    """Of guidance."""
    frames: int
    """That the network sees in one step; of the image UNet, those that it makes."""


SYSTEMS = (
    Sampling("InstructPix2Pix, frame by frame", "image UNet, frame by frame", 20, 3, 15),
    Sampling("ConsistI2V", "ours: ConsistI2V", 50, 2, 16),
    Sampling("Emu Video, image", "image UNet, frame by frame", 50, 2, 1),
    Sampling("Emu Video, video", "ours: Emu Video", 50, 3, 16),
)
FRAMES = 16


def performance(folder: Path) -> str:
    """The section of docs/performance.md; "" without results."""
    return "\n\n".join(filter(None, (_device(json.loads(path.read_text())) for path in sorted(folder.glob("*.json")))))


def costs(folder: Path) -> str:
    """The generated part of docs/systems.md: what our systems take at Stable Diffusion 1.5's size."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    counted = next((one["counted"]["rows"] for one in found if "counted" in one), [])
    parts = [_costs(counted, side) for side in dict.fromkeys(row["side"] for row in counted)]
    return "\n\n".join(parts) or "Not counted yet: `python -m benchmarks.video_unets`."


def _device(found: dict[str, Any]) -> str:
    parts = []
    if "timed" in found:
        rows, about = found["timed"]["rows"], found["timed"]["about"]
        one = rows[0]
        parts.append(
            f"### Timed: {one['size']} widths, latents {one['side']} x {one['side']}, {about['frames']} frames\n\n"
            f"{about['device']['name']}, {_versions(about)}. Processor time of one thread, median [p20, p80], in turns "
            f"({one['step']['samples']} rounds). A training step is forward, backward and AdamW; memory is the "
            "resident peak above the weights and AdamW's moments (allocator and library buffers included).\n\n"
            + _timed(rows)
        )
    if "counted" in found:
        rows, about = found["counted"]["rows"], found["counted"]["about"]
        for side in dict.fromkeys(row["side"] for row in rows):
            parts.append(
                f"### Counted: {rows[0]['size']} widths, {8 * side} px, {about['frames']} frames\n\n"
                f"{_versions(about)}. One clip, float32; memory of a training step without and with gradient "
                "checkpointing.\n\n" + _counted([row for row in rows if row["side"] == side])
            )
    return "\n\n".join(["## Video networks\n\nMade by `python -m benchmarks.video_unets`.", *parts]) if parts else ""


def _versions(about: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {about['versions'][name]}" for name in ("torch", "diffusers") if name in about["versions"]
    )


def _timed(rows: Sequence[dict[str, Any]]) -> str:
    header = [
        "network",
        "parameters",
        "trained",
        "training step",
        "memory of a step",
        "forward pass",
        "memory of a pass",
    ]
    lines = []
    for row in rows:
        forward = _spread(row["forward"]) if row["forward"] else "as above"
        memory = [bytes_text(row[key]) if row[key] is not None else "" for key in ("step_peak", "forward_peak")]
        counts = [f"{row[key] / 1e6:.2f} M" for key in ("parameters", "trained")]
        lines.append([row["network"], *counts, _spread(row["step"]), memory[0], forward, memory[1]])
    return table(header, lines)


def _spread(figures: dict[str, Any]) -> str:
    median, low, high = (microseconds(figures[key]) for key in ("median_us", "p20_us", "p80_us"))
    return f"{median} [{low}, {high}]"


def _counted(rows: Sequence[dict[str, Any]]) -> str:
    header = ["network", "parameters", "trained", "weights + gradients + AdamW", "kept for backward", "peak of a step"]
    header += ["TFLOP of a step", "peak of a forward pass", "its TFLOP"]
    lines = []
    for plain, saving in _pairs(rows):
        counts, less = plain["counts"], saving["counts"]
        static = counts["weights"] + counts["gradients"] + counts["moments"]
        lines.append(
            [
                plain["network"],
                *(f"{counts[key] / 1e6:.0f} M" for key in ("parameters", "trained")),
                _gb(static),
                _both(_gb(counts["kept"]), less and _gb(less["kept"])),
                _both(_gb(counts["training_peak"]), less and _gb(less["training_peak"])),
                _both(_tera(counts["step_flop"]), less and _tera(less["step_flop"])),
                _gb(counts["sampling_peak"]),
                _tera(counts["forward_flop"]),
            ]
        )
    return table(header, lines)


def _costs(rows: Sequence[dict[str, Any]], side: int) -> str:
    header = ["system", "parameters", "trained", "peak of a training step", "TFLOP of a step"]
    header += ["sampling 16 frames", f"its time at {RATE / 1e12:.0f} TFLOP/s"]
    by_network = {plain["network"]: (plain, saving) for plain, saving in _pairs(rows) if plain["side"] == side}
    lines = []
    for system in SYSTEMS:
        plain, saving = (row["counts"] for row in by_network[system.network])
        passes = system.steps * system.branches
        flop = passes * plain["forward_flop"] * system.frames / FRAMES
        step = [
            _both(_gb(plain["training_peak"]), _gb(saving["training_peak"])),
            _both(_tera(plain["step_flop"]), _tera(saving["step_flop"])),
        ]
        lines.append(
            [
                system.name,
                *(f"{plain[key] / 1e6:.0f} M" for key in ("parameters", "trained")),
                *(["", ""] if system.frames == 1 else step),
                f"{system.steps} steps x {system.branches} branches: {flop / 1e12:.0f} TFLOP",
                f"{flop / RATE:.1f} s",
            ]
        )
    return f"### {8 * side} px\n\n{table(header, lines)}"


def _pairs(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Of every network and side, the rows without and with checkpointing."""
    plain, saving = ([row for row in rows if row["checkpointing"] is on] for on in (False, True))
    return list(zip(plain, saving, strict=True))


def _both(without: str, having: str | None) -> str:
    return f"{without} / {having or 'not possible'}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _tera(count: int) -> str:
    return f"{count / 1e12:.3g}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
