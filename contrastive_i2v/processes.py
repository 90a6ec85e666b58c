"""The processes of one run, which torchrun or accelerate launch starts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store, _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from contrastive_i2v.errors import InputError, RankLostError

WAIT = timedelta(days=1)
"""How long a process waits for the others: the main one alone fills caches, makes previews and writes pages."""

SILENCE = timedelta(minutes=10)
"""How long a training step waits for a rank whose connections stay open: a machine that lost its power, a process that
hangs. The connections of a process that dies are closed, and end the wait at once."""

ROLL_CALL = timedelta(seconds=10)
"""How long ranks have to say that they are there, once a collective has failed."""

SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def process_state() -> PartialState:
    """Which process this is, and of how many; the first call meets the others, on CPUs by gloo.

    Raises InputError where the launcher asks for sharded parameters, which training would leave behind: accelerate puts
    other parameters in the network than those that are clipped and averaged.
    """
    for name in SHARDING:
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise InputError(
                f"accelerate launch: {name} is not supported; expected --multi_gpu alone, and --shard to train"
            )
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    options: dict[str, Any] = {}
    if restarted() and not dist.is_initialized():  # torchrun's store still has the addresses of those that died
        store, options["rank"], options["world_size"] = next(rendezvous("env://", timeout=WAIT))
        options["store"] = PrefixStore(f"restart {_restarts()}", store)
    return PartialState(cpu=on_cpu, timeout=WAIT, **options)


def restarted() -> bool:
    """Whether torchrun started this process in place of one that died (`--max-restarts`)."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def watched_ranks(ranks: int) -> Iterator[None]:
    """Inside, every collective of the default group waits for `SILENCE` at most.

    Raises RankLostError where a collective fails and ranks don't answer a roll call, with their numbers.
    """
    if ranks == 1:
        yield
        return
    _set_pg_timeout(SILENCE)
    try:
        yield
    except RuntimeError as error:
        if (isinstance(error, dist.DistError) or "gloo" in str(error)) and (lost := _silent_ranks(ranks)):
            raise RankLostError(
                f"rank {', '.join(map(str, lost))} of {ranks} died or is out of reach; the same command with --resume "
                "goes on from the last checkpoint"
            ) from error
        raise
    finally:
        _set_pg_timeout(WAIT)


def _silent_ranks(ranks: int) -> list[int]:
    """Those that don't enter their numbers into the run's store, which outlives broken connections between ranks."""
    store, deadline = _get_default_store(), time.monotonic() + ROLL_CALL.total_seconds()
    try:
        store.set(f"alive/{dist.get_rank()}", "")
        silent = list(range(ranks))
        while silent and time.monotonic() < deadline:
            silent = [rank for rank in silent if not store.check([f"alive/{rank}"])]
            time.sleep(0.1)
    except RuntimeError:  # the store was rank 0's
        return [0]
    return silent
