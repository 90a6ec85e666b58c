"""Parquet files, read by pyarrow a few rows at a time: nothing is unpacked, and no row group need fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from contrastive_i2v.data.types import ParquetRow
from contrastive_i2v.errors import InputError, one_line

IMAGES_AT_ONCE = 16
"""Rows of images that are in memory."""
TEXTS_AT_ONCE = 4096


def parquet_columns(path: Path) -> list[str]:
    """The names of a parquet file's columns. Raises InputError naming the file, or pyarrow where it is missing."""
    with _open(path) as file:
        return list(file.schema_arrow.names)


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(row group, row in it, cells) of every row. Raises InputError naming the file."""
    with _open(path) as file:
        for group in range(file.num_row_groups):
            row = 0
            for batch in _batches(path, file, group, columns, TEXTS_AT_ONCE):
                with _damage(path, group):
                    rows = batch.to_pylist()
                for cells in rows:
                    yield group, row, cells
                    row += 1


def read_cell(path: Path, place: ParquetRow, column: str) -> bytes:
    """The bytes in a cell: of binary, or of a struct of bytes and path, as the datasets library stores images.

    Raises InputError naming the file and the row.
    """
    try:
        cursor = _cursor(path, path.stat().st_mtime_ns, place.group, place.columns)
        value = cursor.cell(place.row, column)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or one_line(error)})") from error
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise InputError(f"{path}, row {place.row} of group {place.group}: {column} holds no image; expected its bytes")
    return content


class _Cursor:
    """Cells of a row group in the order of its rows; an earlier row starts anew."""

    def __init__(self, path: Path, group: int, columns: Sequence[str]) -> None:
        self.path, self.group, self.columns = path, group, columns
        self._start()

    def _start(self) -> None:
        self.first = 0
        self.batch: Any = None
        self.batches = self._read()

    def _read(self) -> Iterator[Any]:
        with _open(self.path) as file:
            yield from _batches(self.path, file, self.group, self.columns, IMAGES_AT_ONCE)

    def cell(self, row: int, column: str) -> Any:
        if row < self.first:
            self._start()
        while self.batch is None or row >= self.first + self.batch.num_rows:
            self.first += 0 if self.batch is None else self.batch.num_rows
            self.batch = next(self.batches, None)
            if self.batch is None:
                self._start()
                raise InputError(f"{self.path}: its row group {self.group} has no row {row}; was it changed?")
        with _damage(self.path, self.group):
            return self.batch[column][row - self.first].as_py()


@lru_cache(maxsize=2)
def _cursor(path: Path, time: int, group: int, columns: tuple[str, ...]) -> _Cursor:
    return _Cursor(path, group, columns)


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(f"{path}: parquet is read by pyarrow, which is not installed: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's own types, OSError, and others for damage
        raise InputError(f"{path}: not a readable parquet file ({one_line(error)})") from error


def _batches(path: Path, file: Any, group: int, columns: Sequence[str], size: int) -> Iterator[Any]:
    with _damage(path, group):
        yield from file.iter_batches(batch_size=size, row_groups=[group], columns=list(columns), use_threads=False)


@contextmanager
def _damage(path: Path, group: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # pyarrow's own types, OSError, UnicodeDecodeError, and others
        raise InputError(f"{path}: can't be read, row group {group} is damaged ({one_line(error)})") from error
