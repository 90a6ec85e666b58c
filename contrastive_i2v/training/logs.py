"""What a run tells while it goes: `log.jsonl`, one object a line, and the same for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from contrastive_i2v.files import parse_json

Row: TypeAlias = Mapping[str, Tensor | float]
"""Figures by name. Tensors stay on their device until somebody reads them."""


class RunLog:
    """Append rows to `folder/log.jsonl` and `folder/tensorboard`; rows after `from_step` (which a resumed run will
    write again) are dropped first."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        kept = [row for row in read_log(self.path) if row["step"] <= from_step]
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
        part.replace(self.path)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            self.board.add_scalar(name, value, step)
        self.board.flush()


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a `log.jsonl`; what follows a line that a kill cut short is left out."""
    rows: list[dict[str, float]] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = parse_json(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def read_rows(steps: Sequence[Sequence[Row]]) -> list[list[dict[str, float]]]:
    """The figures of some steps as numbers, waiting for the device once."""
    tensors = [value for rows in steps for row in rows for value in row.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack([tensor.detach().float() for tensor in tensors]).tolist() if tensors else ())
    return [
        [{name: next(numbers) if isinstance(value, Tensor) else value for name, value in row.items()} for row in rows]
        for rows in steps
    ]


def mean_rows(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each name over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}
