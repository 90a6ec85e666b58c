"""A queue of past latents: more negatives than a batch has, for the price of keeping them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

NO_GROUP = torch.iinfo(torch.int64).min  # of a latent that came without one: equal to no query's


class Candidates(NamedTuple):
    """The rows of a bank: the current batch's first, so query i's positive is in row i, then past ones."""

    latents: Tensor  # [B + past, *latent], of the queue's dtype
    groups: Tensor | None  # int64 [B + past]


class MemoryBank(nn.Module):
    """First in, first out queue of clean latents with their groups and ages.

        past = MemoryBank(8192, (4, 32, 32), device="cuda")
        bank, bank_groups = past.candidates(clean_latents, video)
        loss(..., {"target": bank}, groups=video, bank_groups={"target": bank_groups})
        past.enqueue(clean_latents, video)

    The encoder is frozen, so a latent of long ago is as good as one of now: it needs no momentum encoder. What
    ages is only the draw of its noise. Give groups (the video's index): a queue longer than an epoch holds the
    query's own clip, which is no negative.

    The queue is a buffer, so a checkpoint carries it and `.to()` moves it; with its positions in the extra state, a
    loaded module goes on exactly. There are no parameters. `DistributedDataParallel` would broadcast the queue at
    every step: keep it outside of the module it wraps. Across ranks either enqueue what `gather_bank` gives, so all
    hold the same queue, or the rank's own, as a shard (`sharded_contrastive_diffusion_loss`).

    The number of rows grows until the queue is full and then stays (without `max_age`): under torch.compile and
    CUDA graphs, begin when `len(bank) == bank.size`.

    Args:
        size: rows it holds at most.
        latent_shape: of one latent, without the batch.
        dtype: what it is kept in; the current batch is rounded alike.
        device: of the queue.
        max_age: rows that were enqueued more than so many calls of `enqueue` before the last leave; None keeps
            them while there is room.

    Source: the queue of MoCo (He et al., 2020, arXiv:1911.05722, section 3.2), earlier the memory bank of Wu et al.
    (2018, arXiv:1805.01978).
    """

    queue: Tensor  # [size, *latent]
    queue_groups: Tensor  # int64 [size]

    def __init__(
        self,
        size: int,
        latent_shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        max_age: int | None = None,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}: expected at least 1 row")
        if math.prod(latent_shape) < 1 or not latent_shape:
            raise ValueError(f"latent_shape is {tuple(latent_shape)}: expected at least one element")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype}: expected a floating one")
        if max_age is not None and max_age < 0:
            raise ValueError(f"max_age is {max_age}: expected None or at least 0")
        self.size = size
        self.max_age = max_age
        self.register_buffer("queue", torch.zeros(size, *latent_shape, dtype=dtype, device=device))
        self.register_buffer("queue_groups", torch.full((size,), NO_GROUP, device=device))
        # Where and when is known on the host, so nothing here waits for a GPU but the check of `enqueue`.
        self._next = 0  # the row that is written next
        self._batches: deque[int] = deque()  # rows still held of each call of `enqueue`, oldest first

    def __len__(self) -> int:
        return sum(self._batches)

    @property
    def latents(self) -> Tensor:
        """[len, *latent], oldest first; a copy."""
        return torch.cat(self._parts(self.queue))

    @property
    def groups(self) -> Tensor:
        """int64 [len], oldest first; `NO_GROUP` for what came without."""
        return torch.cat(self._parts(self.queue_groups))

    @property
    def ages(self) -> Tensor:
        """int64 [len], oldest first: calls of `enqueue` since the row's own; the newest have 0."""
        counts = torch.tensor(self._batches, dtype=torch.int64)
        return torch.arange(len(counts)).flip(0).repeat_interleave(counts).to(self.queue.device)

    def candidates(self, latents: Tensor, groups: Tensor | None = None) -> Candidates:
        """The batch's rows, rounded to the queue's dtype, then the queue's.

        Args:
            latents: [B, *latent].
            groups: int64 [B]; None leaves the groups out of the answer, too.
        """
        self._check(latents, groups)
        return Candidates(
            torch.cat([latents.detach().to(self.queue.dtype), *self._parts(self.queue)]),
            None if groups is None else torch.cat([groups, *self._parts(self.queue_groups)]),
        )

    @torch.no_grad()
    def enqueue(self, latents: Tensor, groups: Tensor | None = None) -> None:
        """Take in a batch; the oldest rows make room.

        Args:
            latents: [B, *latent], finite, constant; B <= size.
            groups: int64 [B].

        Raises:
            ValueError: a wrong shape, dtype or device, more rows than the queue has, or a NaN or infinity, which
                would spoil every loss until it left (looking for one waits for a GPU).
        """
        self._check(latents, groups)
        count = len(latents)
        if count > self.size:
            raise ValueError(f"latents has {count} rows: expected at most {self.size}, the size of the queue")
        rows = latents.to(self.queue.dtype)
        if not bool(rows.isfinite().all()):
            bad = int((~rows.isfinite().flatten(1).all(1)).nonzero()[0])
            raise ValueError(f"latents has a NaN or infinity in row {bad} as {rows.dtype}: expected finite values")
        marks = torch.full_like(self.queue_groups[:count], NO_GROUP) if groups is None else groups
        first = min(count, self.size - self._next)  # the rest wraps around
        for buffer, values in ((self.queue, rows), (self.queue_groups, marks)):
            buffer[self._next : self._next + first] = values[:first]
            buffer[: count - first] = values[first:]
        self._next = (self._next + count) % self.size
        self._batches.append(count)
        while self.max_age is not None and len(self._batches) > self.max_age + 1:
            self._batches.popleft()
        while (excess := len(self) - self.size) > 0:
            oldest = self._batches.popleft()
            if oldest > excess:
                self._batches.appendleft(oldest - excess)

    def get_extra_state(self) -> Tensor:
        """int64: where the next row goes, then the rows held of each call of `enqueue`."""
        return torch.tensor([self._next, *self._batches])

    def set_extra_state(self, state: Tensor) -> None:
        """The inverse of `get_extra_state`."""
        self._next, *batches = (int(value) for value in state)
        self._batches = deque(batches)

    def extra_repr(self) -> str:
        """The settings, for print(module)."""
        return f"size={self.size}, latent_shape={tuple(self.queue.shape[1:])}, max_age={self.max_age}, rows={len(self)}"

    def _parts(self, buffer: Tensor) -> list[Tensor]:
        """The rows that hold something, oldest first, in at most two pieces."""
        start = self._next - len(self)
        if start >= 0:
            return [buffer[start : self._next]]
        return [buffer[start % self.size :], buffer[: self._next]]

    def _check(self, latents: Tensor, groups: Tensor | None) -> None:
        shape = self.queue.shape[1:]
        if not latents.is_floating_point() or latents.dim() == 0 or latents.shape[1:] != shape or len(latents) == 0:
            raise ValueError(f"latents is {latents.dtype} {list(latents.shape)}: expected floating [B, *{list(shape)}]")
        if latents.requires_grad:
            raise ValueError("latents requires a gradient, but a queue holds constants: detach it")
        if groups is not None and (groups.dtype != torch.int64 or groups.shape != latents.shape[:1]):
            raise ValueError(f"groups is {groups.dtype} {list(groups.shape)}: expected torch.int64 [{len(latents)}]")
        for name, tensor in (("latents", latents), ("groups", groups)):
            if tensor is not None and tensor.device != self.queue.device:
                raise ValueError(f"{name} is on {tensor.device}: expected the queue's device, {self.queue.device}")
