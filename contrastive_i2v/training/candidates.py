"""What the loss contrasts with: the batch's own latents, those of the other processes, and past ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import MemoryBank, gather_bank
from contrastive_i2v.losses.memory_bank import NO_GROUP
from contrastive_i2v.training.config import LossConfig
from contrastive_i2v.training.inputs import LossRows


class CandidateBanks(nn.Module):
    """From a batch to the bank arguments of the loss.

    One process without a memory passes its latents on as they are. Several gather theirs, in bfloat16. The memory
    takes in what was gathered, so it is the same in every process and one of them can save it. With displacement every
    candidate is taken relative to its own input frame. Hard negatives, made from the query's own latents, come last and
    belong to no group, so `false_negatives` doesn't leave them out; they are neither gathered nor remembered.

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
        self.displacement = config.displacement
        self.hard_negatives = config.hard_negatives if "target" in self.names else ()
        self.sizes = [rows] * processes
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

    def forward(self, rows: LossRows) -> dict[str, Any]:
        """The arguments of `ContrastiveDiffusionLoss` that say what to contrast with: `banks`, `groups`, and where they
        are needed `positives`, `bank_groups` and `origins`. The memory then takes the batch in."""
        candidates = self._candidates(rows)
        if self.hard_negatives:
            self._append_hard_negatives(candidates, rows)
        if self.displacement:
            candidates["origins"] = rows.banks["input"]
        return candidates

    def _candidates(self, rows: LossRows) -> dict[str, Any]:
        """The latents of all processes and of past batches."""
        groups = everyones = rows.groups if self.false_negatives else None
        own = rows.banks
        if self.displacement:
            own = own | {"target": own["target"] - own["input"]}
        if not self.gather and not self.memory:
            return {"banks": own, "groups": groups}
        banks = {name: own[name] for name in self.names}
        positives, bank_groups = {}, {}
        for number, name in enumerate(self.names):
            if self.gather:
                bank = gather_bank(banks[name], groups if number == 0 else None, sizes=self.sizes)
                banks[name], positives[name] = bank.latents, bank.positives
                everyones = bank.groups if number == 0 else everyones
            if name in self.memory:
                past, latents = self.memory[name], banks[name]
                banks[name], bank_groups[name] = past.candidates(latents, everyones)  # type: ignore[operator]
                if bool(banks[name][: len(latents)].isfinite().all()):  # else this step is skipped
                    past.enqueue(latents, everyones)  # type: ignore[operator]
            else:
                bank_groups[name] = everyones
        marked = {} if groups is None else {"bank_groups": bank_groups}
        return {"banks": banks, "groups": groups, "positives": positives, **marked}

    def _append_hard_negatives(self, candidates: dict[str, Any], rows: LossRows) -> None:
        target, source = rows.banks["target"], rows.banks["input"]
        origin = source if self.displacement else torch.zeros_like(source)
        latents = {"input": source, "drift": target + rows.drift}
        hard = torch.cat([latents[name] - origin for name in self.hard_negatives])  # [negatives * rows, *latent]
        bank = candidates["banks"]["target"]
        candidates["banks"] = candidates["banks"] | {"target": torch.cat([bank, hard.to(bank.dtype)])}
        if candidates["groups"] is not None:
            marks = candidates.get("bank_groups", {})
            mark = marks.get("target", candidates["groups"])
            nobody = mark.new_full((len(hard),), NO_GROUP)
            candidates["bank_groups"] = marks | {"target": torch.cat([mark, nobody])}
