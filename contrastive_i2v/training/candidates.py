"""What the loss contrasts with: the batch's own latents, those of the other processes, and past ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import MemoryBank, gather_bank
from contrastive_i2v.training.config import LossConfig
from contrastive_i2v.training.inputs import LossRows


class CandidateBanks(nn.Module):
    """From a batch to the bank arguments of the loss.

    One process without a memory passes its latents on as they are. Several gather theirs, in bfloat16. The memory
    takes in what was gathered, so it is the same in every process and one of them can save it.

    Raises InputError where the memory can't be filled alike everywhere, or is smaller than one batch of all processes.
    """

    def __init__(
        self,
        config: LossConfig,
        names: Iterable[str],
        *,
        latent_shape: Sequence[int],
        device: torch.device,
        rows: int,
        processes: int,
    ) -> None:
        super().__init__()
        self.names = list(names)
        self.false_negatives = config.false_negatives
        self.processes = processes
        self.gather = config.gather and processes > 1
        size, everyones = config.memory_bank, rows * processes
        if size and processes > 1 and not config.gather:
            raise InputError(
                f"loss.memory_bank={size} with {processes} processes needs loss.gather: else each had its own, and a "
                "checkpoint holds one"
            )
        if 0 < size < everyones:
            raise InputError(
                f"loss.memory_bank={size}; expected 0, or at least the {everyones} rows of a batch of all processes"
            )
        banks = {name: MemoryBank(size, latent_shape, device=device) for name in self.names if size}
        self.memory = nn.ModuleDict(banks)
        self.pending: list[tuple[str, Tensor, Tensor | None]] = []

    def forward(self, rows: LossRows) -> dict[str, Any]:
        """The arguments of `ContrastiveDiffusionLoss` that say what to contrast with: `banks`, `groups`, and where they
        are needed `positives` and `bank_groups`."""
        groups = everyones = rows.groups if self.false_negatives else None
        if not self.gather and not self.memory:
            return {"banks": rows.banks, "groups": groups}
        banks = {name: rows.banks[name] for name in self.names}
        sizes = [len(rows.groups)] * self.processes  # alike, since all have the same bucket
        positives, bank_groups = {}, {}
        for number, name in enumerate(self.names):
            if self.gather:
                bank = gather_bank(banks[name], groups if number == 0 else None, sizes=sizes)
                banks[name], positives[name] = bank.latents, bank.positives
                everyones = bank.groups if number == 0 else everyones
            if name in self.memory:
                self.pending.append((name, banks[name], everyones))
                banks[name], bank_groups[name] = self.memory[name].candidates(banks[name], everyones)  # type: ignore[operator]
            else:
                bank_groups[name] = everyones
        marked = {} if groups is None else {"bank_groups": bank_groups}
        return {"banks": banks, "groups": groups, "positives": positives, **marked}

    def remember(self) -> None:
        """Let the memory take in the batches since the last call, but for latents that aren't finite. Waits for the
        device, so a step does it once, at its end."""
        for name, latents, groups in self.pending:
            if bool(latents.isfinite().all()):
                self.memory[name].enqueue(latents, groups)  # type: ignore[operator]
        self.pending.clear()
