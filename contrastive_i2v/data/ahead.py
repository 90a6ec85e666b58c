"""Items of a DataLoader whose workers may die or find damage: each is one error of one line."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch.utils.data import DataLoader

from contrastive_i2v.errors import InputError, one_line


class WorkerDied(InputError):
    """A process that reads ahead is gone."""


def read_ahead(loader: DataLoader[Any], *, go_on: str) -> Iterator[Any]:
    """What `loader` yields.

    Args:
        go_on: what to do after a worker died, for the error.

    Raises:
        WorkerDied: when an item is due, and never in the middle of what the caller does with the last one.
        InputError: what a worker raised, without the worker's traceback.
    """
    items = iter(loader)
    if loader.num_workers:  # torch's handler would raise wherever the main thread is
        with suppress(ValueError, AttributeError):  # not in the main thread, or no such signal
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield from items
    except InputError as error:
        raise InputError(str(error).rstrip().rsplit("InputError: ", 1)[-1]) from error
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: it died while it handed over tensors
        if not loader.num_workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
            raise
        raise WorkerDied(
            f"workers: a process that reads batches ahead died ({one_line(error)}), most often because memory ran out; "
            f"give fewer --workers and {go_on}"
        ) from error
