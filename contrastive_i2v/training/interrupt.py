"""Ctrl-C, SIGTERM and SIGHUP end a run after the step under way, so that it can be saved first: on every rank after the
same step, whichever got the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from contrastive_i2v.processes import WAIT


@contextmanager
def stop_requests(ranks: int) -> Iterator[Callable[[], int]]:
    """Yields a function that gives the number of the SIGINT, SIGTERM or SIGHUP that has come to any rank, 0 for none; a
    second one acts as ever.

    All ranks call it alike, and get the same answer: it waits for them, on the CPU alone, through a gloo group of its
    own. Off the main thread, where Python takes no handlers, signals act as ever.
    """
    asked = 0
    group = dist.new_group(backend="gloo", timeout=WAIT) if ranks > 1 else None
    handled = threading.current_thread() is threading.main_thread()
    names = ("SIGINT", "SIGTERM", "SIGHUP") if handled else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        asked = number
        restore()

    def asked_anywhere() -> int:
        if group is None:
            return asked
        number = torch.tensor(asked)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=group)
        return int(number)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked_anywhere
    finally:
        restore()
