"""A small fuzzer: seeded inputs, each checked in a child process with bounds on time and memory.

A target draws an input, which is always bytes, and checks it: `check` raises where a promise is broken. Input number
`index` depends on (target, seed, index) alone. Checks run in a child, so that one that ends the process or never
returns is found like any other; the next input gets a new child.
"""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import random
import re
import resource
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import torch

TARGETS = (
    "metadata", "sources", "video", "picture", "cache", "shard", "scores", "checkpoint", "model", "adapter", "weights",
    "config", "report", "study", "op",
)  # fmt: skip
"""The modules of `targets`; each has a class `Target`."""
CASE_SECONDS = 60
"""One input may take this long."""
CASE_BYTES = 2 << 30
"""By so much may one input raise the peak of memory."""
SAVED = Path(__file__).parents[2] / "build" / "fuzz"
"""Where failing inputs are kept."""
START_SECONDS = 180
"""A target may take this long to make what it starts from."""
INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 2**63 - 1, 2**63)
"""What lies at the edges of integers of 1, 2, 4 and 8 bytes."""


class Target(Protocol):
    """What is fuzzed. Made with an empty folder to work in."""

    def draw(self, rng: random.Random) -> bytes:
        """An input."""

    def check(self, case: bytes) -> None:
        """Raises where a promise is broken; what the library promises to raise, this catches."""


@dataclass(frozen=True)
class Failure:
    """An input that broke a promise."""

    index: int
    reason: str
    """The traceback, or how the process ended."""
    case: bytes


def report(name: str, seed: int, failure: Failure) -> str:
    """Keeps the input; what to say of it, with the command that replays it."""
    SAVED.mkdir(parents=True, exist_ok=True)
    file = SAVED / f"{name}-{seed}-{failure.index}"
    file.write_bytes(failure.case)
    replay = f"python tests/fuzz {name} {os.path.relpath(file)}"
    return f"{name}, seed {seed}, input {failure.index}: {failure.reason}\nreplay: {replay}"


def load(name: str, folder: Path) -> Target:
    """The target of that name, working in `folder`."""
    target: Target = importlib.import_module(f"targets.{name}").Target(folder)
    return target


def case_of(target: Target, name: str, seed: int, index: int) -> bytes:
    """Input number `index`."""
    return target.draw(random.Random(f"{name} {seed} {index}"))


def fuzz(name: str, seed: int, seconds: float, counts: dict[str, int] | None = None) -> Iterator[Failure]:
    """The failures among as many inputs as `seconds` allow; `counts[name]` says how many those were."""
    context = multiprocessing.get_context("fork")
    deadline = time.monotonic() + seconds
    index = 0
    while time.monotonic() < deadline:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_check_all, args=(name, seed, index, deadline, folder, theirs), daemon=True)
        child.start()
        theirs.close()
        try:
            index, reason, case = _watch(child, ours, index)
        finally:
            child.kill()
            child.join()
            ours.close()
            shutil.rmtree(folder, ignore_errors=True)
        index += 1
        if counts is not None:
            counts[name] = index
        if reason:
            yield Failure(index - 1, reason, case)


def _watch(child: multiprocessing.process.BaseProcess, pipe: Connection, index: int) -> tuple[int, str, bytes]:
    """(last index, reason or "", its input) of one child: until it is done, or an input breaks a promise."""
    case, limit = b"", START_SECONDS
    while pipe.poll(limit):
        try:
            message = pipe.recv()
        except EOFError:
            child.join()
            return index, f"ended the process, exit status {child.exitcode}" if child.exitcode else "", case
        if isinstance(message, str):
            return index, message, case
        (index, case), limit = message, CASE_SECONDS
    return index, f"took longer than {limit} s", case


def _check_all(name: str, seed: int, index: int, deadline: float, folder: Path, pipe: Connection) -> None:
    """Sends (index, input) before each check, and a text where it failed."""
    torch.set_num_threads(1)  # OpenMP's threads don't survive a fork
    faulthandler.enable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what commands would tell their user
    os.environ["CI2V_DECODE_SECONDS"] = str(CASE_SECONDS / 3)
    try:
        target = load(name, folder)
        while time.monotonic() < deadline:
            case = case_of(target, name, seed, index)
            pipe.send((index, case))
            before = _peak_bytes()
            target.check(case)
            if _peak_bytes() - before > CASE_BYTES:
                raise MemoryError(f"took {(_peak_bytes() - before) >> 20} MiB")
            index += 1
    except BaseException:
        pipe.send(traceback.format_exc())
    pipe.close()
    os._exit(0)


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def mutate(rng: random.Random, data: bytes, *others: bytes, words: Sequence[bytes] = (b"",)) -> bytes:
    """`data` with one to eight changes: bits, digits, cuts, repeats, `words`, parts of `others`, extreme integers."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        start = rng.randrange(len(changed) + 1)
        stop = min(len(changed), start + rng.choice((1, 2, 4, 8, 64, len(changed))))
        other = rng.choice((data, *others))
        kind = rng.randrange(10)
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << rng.randrange(8)
        elif kind == 1 and start < len(changed):
            changed[start] = rng.randrange(256)
        elif kind == 2:
            del changed[start:]
        elif kind == 3:
            del changed[start:stop]
        elif kind == 4:
            changed[start:start] = rng.randbytes(rng.choice((1, 2, 7, 64)))
        elif kind == 5:
            changed[stop:stop] = changed[start:stop] * rng.choice((1, 2, 2000 if stop - start < 8 else 3))
        elif kind == 6:
            at = rng.randrange(len(other) + 1)
            changed[start:stop] = other[at : at + rng.choice((1, 8, 64, len(other)))]
        elif kind == 7:
            size = rng.choice((1, 2, 4, 8))
            number = (rng.choice(INTEGERS) + rng.randrange(-1, 2)) % 256**size
            changed[start : start + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 8:
            changed[start : rng.choice((start, stop))] = rng.choice(words)
        elif digits := re.search(rb"[0-9]", changed[start:]):  # a text's number becomes another number
            changed[start + digits.start()] = rng.choice(b"0123456789")
    return bytes(changed[: 1 << 20])
