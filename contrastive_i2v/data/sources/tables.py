"""Lists of captions, row by row: CSV, JSON, JSON lines and TOML, UTF-8."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import parse_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CELL = 1 << 24
"""Characters of a cell of a CSV file, where the csv module stops at 131,072 otherwise, and bytes of a text file."""


def csv_columns(file: Path) -> list[str]:
    """The header's names; [] where the file has none that can be read."""
    try:
        return next(_cells(file, "replace"))[1]  # what is wrong with a later row, its reader says
    except (InputError, StopIteration):
        return []


def csv_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The line each row ends on, and its cells of these columns; a cell that is missing at the end is "".

    Raises InputError naming the file and the line, or the columns that it lacks.
    """
    rows = _cells(file)
    _, header = next(rows, (0, []))
    if lacks := [name for name in columns if name not in header]:
        raise InputError(f"{file}: lacks the columns {', '.join(lacks)}; it has {one_line(', '.join(header))}")
    places = [header.index(name) for name in columns]
    for line, cells in rows:
        if len(cells) < len(header):
            cells += [""] * (len(header) - len(cells))
        yield line, [cells[place] for place in places]


def jsonl_keys(file: Path) -> list[str]:
    """The keys of the first object; [] where the file has none that can be read."""
    try:
        return list(next(jsonl_rows(file, "replace"))[1])
    except (InputError, StopIteration):
        return []


def jsonl_rows(file: Path, errors: str = "strict") -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line that isn't blank, and its object. Raises InputError naming the file and the line."""
    with _opened(file, errors) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise InputError(f"{file}, line {number}: is not JSON ({one_line(error)})") from error
                if not isinstance(row, dict):
                    raise InputError(f"{file}, line {number}: expected an object, got {one_line(json.dumps(row))}")
                yield number, row


def read_json(file: Path) -> Any:
    """Raises InputError naming the file."""
    with _opened(file) as content:
        try:
            return parse_json(content.read())
        except ValueError as error:
            raise InputError(f"{file}: is not JSON ({one_line(error)})") from error


def read_lines(file: Path) -> list[str]:
    """Lines of a text, blank ones too, but for those at its end. Raises InputError naming the file."""
    with _opened(file) as content:
        text: str = content.read()
        return text.rstrip().split("\n")


def read_toml(file: Path) -> dict[str, Any]:
    """Raises InputError naming the file."""
    with _opened(file) as content:
        try:
            found: dict[str, Any] = tomllib.loads(content.read())
            return found
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: is not TOML ({one_line(error)})") from error


@contextmanager
def _opened(file: Path, errors: str = "strict") -> Iterator[Any]:
    if not file.is_file():  # a pipe or a device may never end
        raise InputError(f"{file}: is no regular file; expected a list of captions")
    try:
        with file.open(encoding="utf-8-sig", errors=errors, newline="") as opened:
            yield opened
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: can't be read as UTF-8 ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise InputError(f"{file}: can't be read ({error.strerror or error})") from error


def _cells(file: Path, errors: str = "strict") -> Iterator[tuple[int, list[str]]]:
    """The line each row of a CSV ends on, and all its cells."""
    with _opened(file, errors) as opened:
        before = csv.field_size_limit(MAX_CELL)  # of the whole process
        reader = csv.reader(opened, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise InputError(f"{file}, line {reader.line_num}: can't be read as CSV ({error})") from error
        finally:
            csv.field_size_limit(before)
