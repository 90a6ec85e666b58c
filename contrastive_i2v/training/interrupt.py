"""Ctrl-C, SIGTERM and SIGHUP end a run after the step under way, so that it can be saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_requests(*, enabled: bool) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT, SIGTERM or SIGHUP has come; a second one acts as ever.

    Not `enabled`, or off the main thread (where Python takes no handlers), signals act as ever.
    """
    asked = threading.Event()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        asked.set()
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        restore()
