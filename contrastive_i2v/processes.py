"""The processes of one run, which torchrun or accelerate launch starts."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

WAIT = timedelta(days=1)
"""How long a process waits for the others: the main one alone fills caches, makes previews and writes pages."""


def process_state() -> PartialState:
    """Which process this is, and of how many; the first call meets the others, on CPUs by gloo."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, timeout=WAIT)
