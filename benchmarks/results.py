"""A results file: JSON that is whole after every problem, so that an interrupted run keeps what it measured."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.problems import Case

SCHEMA = 1
Row = dict[str, Any]
_SAME = ("device", "threads", "versions", "commit")


@dataclass(kw_only=True)
class Results:
    """What one run on one device gave."""

    about: dict[str, Any]
    """`environment.describe`, and the settings of the run."""
    ceilings: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Provider -> why it is not here."""
    rows: list[Row] = field(default_factory=list)
    unet_steps: list[Row] = field(default_factory=list)

    def of(self, case: Case) -> list[Row]:
        return [row for row in self.rows if row["case"] == dataclasses.asdict(case)]

    def done(self, case: Case, providers: list[str]) -> bool:
        return set(providers) <= {row["provider"] for row in self.of(case)}

    def add(self, case: Case, rows: list[Row]) -> None:
        """Replaces what an earlier try at the case gave for the same providers."""
        named, fresh = dataclasses.asdict(case), {row["provider"] for row in rows}
        kept = [row for row in self.rows if row["case"] != named or row["provider"] not in fresh]
        self.rows = [*kept, *rows]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        content = {"schema": SCHEMA, **dataclasses.asdict(self)}
        beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(beside, path)

    @staticmethod
    def load(path: Path) -> Results:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{path} has schema {content.get('schema')!r}: expected {SCHEMA}; measure again")
        del content["schema"]
        return Results(**content)

    def why_not_resume(self, about: dict[str, Any]) -> str:
        """What differs between this file's run and one described by `about`; "" when the two may share a file."""
        different = [name for name in _SAME if self.about.get(name) != about.get(name)]
        return ", ".join(f"{name} was {self.about.get(name)!r}, is {about.get(name)!r}" for name in different)


def case_of(row: Row) -> Case:
    return Case(**row["case"])
