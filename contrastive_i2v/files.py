"""Files that appear whole or not at all, and hashes of what they hold."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from contrastive_i2v.errors import InputError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(part)` write beside `path`, then rename: the file appears whole or not at all.

    Raises InputError naming the file when the disk refuses.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: could not be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_csv(path: Path, header: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all. Raises InputError naming the file when the disk refuses."""

    def write(part: Path) -> None:
        # a file's name may hold bytes that aren't UTF-8
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])

    write_whole(path, write)


def lock_folder(folder: Path) -> IO[str] | None:
    """Hold a folder for this process, as long as the file that is returned stays open; the kernel lets go of it when
    the process dies. None where this process holds it already, or the system has no such locks.

    Raises InputError naming the process that holds it, or the folder where it can't be written.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise InputError(f"{folder}: can't be written ({error.strerror or error}); give another --output") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        if holder.startswith(f"process {os.getpid()} "):
            return None
        raise InputError(
            f"{folder}: is in use by {holder or 'another process'}; wait until it ends, or give another --output"
        ) from error
    except OSError:  # a file system without locks
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} since {datetime.now().astimezone().isoformat(timespec='seconds')}\n")
    file.flush()
    return file


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """`lock_folder` for as long as a block runs, whose own calls may lock the folder, and those in it, again."""
    lock = lock_folder(folder)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def file_hash(*paths: Path) -> str:
    """sha256 of the files' bytes, one after the other. Raises InputError naming the file."""
    total = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    total.update(block)
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror})") from error
    return total.hexdigest()


def folder_hash(folder: Path, suffixes: Sequence[str] = (".safetensors", ".json", ".txt")) -> str:
    """sha256 over the names and contents of a folder's weights and configs, in order of their names."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in suffixes and path.is_file()]
    lines = "".join(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def parse_json(text: str) -> Any:
    """What JSON says. Raises ValueError, also for what is nested too deeply, where json has a RecursionError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def digest(value: object, digits: int = 16) -> str:
    """The first hex digits of sha256 over a value's JSON, keys sorted."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
