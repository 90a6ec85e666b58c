"""A function that runs while the caller goes on, in a thread that ends with the program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_ONE_AT_A_TIME = threading.Lock()


class Background(Generic[T]):
    """`Background(f, x).result()` is `f(x)`, begun at once, or after those that were begun before.

    Unlike a concurrent.futures executor's, the thread keeps no interrupted program waiting.
    """

    def __init__(self, function: Callable[..., T], *arguments: object) -> None:
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Wait for it; raises what the function raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found[0]

    def _run(self, function: Callable[..., T], arguments: tuple[object, ...]) -> None:
        try:
            with _ONE_AT_A_TIME:
                self._found.append(function(*arguments))
        except BaseException as error:
            self._error = error
