"""What a run tells while it goes: `log.jsonl`, one object a line, and the same for trackers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from contrastive_i2v.files import parse_json
from contrastive_i2v.training.trackers import open_trackers

Row: TypeAlias = Mapping[str, Tensor | float]
"""Figures by name. Tensors stay on their device until somebody reads them."""


class RunLog:
    """Append rows to `folder/log.jsonl` and tell trackers; rows after `from_step`, which a resumed run writes again,
    are dropped first.

    Raises InputError where a tracker doesn't start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        from_step: int,
        trackers: Sequence[str] = ("tensorboard",),
        project: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        rows = read_log(self.path)
        told = max((int(row["step"]) for row in rows), default=0)
        self.rows = [row for row in rows if row["step"] <= from_step]
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        part.replace(self.path)
        self.trackers = open_trackers(
            trackers, folder, project=project, config=config or {}, from_step=from_step, told=told
        )

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        self.rows.append({"step": step, **row})
        with self.path.open("a") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")
        for tracker in self.trackers:
            tracker.write(step, row)

    def show(self, step: int, name: str, file: Path) -> None:
        """Show trackers a video or an image."""
        for tracker in self.trackers:
            tracker.show(step, name, file)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """A run, however it ends: then trackers are told, and closed."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            for tracker in self.trackers:
                tracker.close(error)


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
