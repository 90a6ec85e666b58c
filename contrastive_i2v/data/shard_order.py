"""The order in which training reads shards: a buffered shuffle without state."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch

from contrastive_i2v.randomness import seeded


class Place(NamedTuple):
    """Where an example is."""

    shard: int
    number: int


@dataclass(frozen=True)
class ShardOrder:
    """Which examples make which batch, for any number of processes and workers: a buffered shuffle without state.

    An epoch's shards are shuffled and dealt to `streams`. A stream goes through its shards `buffer` at a time, and
    shuffles the examples of those. Batch n is the next `batch_size` examples of stream n mod `streams`, so that a
    process or worker that makes each k-th batch, k a divisor of the streams, reads 1/k of the shards. A batch is a
    function of its number and of these fields, and finding it reads no shard.
    """

    examples: tuple[int, ...]
    """Of each shard."""
    batch_size: int
    streams: int
    buffer: int
    seed: int

    def batches(self, numbers: Iterable[int]) -> Iterator[list[Place]]:
        """The batches of these rising numbers."""
        return map(ShardReading(self).batch, numbers)

    def block(self, epoch: int, stream: int, streams: int, number: int) -> tuple[list[int], bool]:
        """The shards of a stream's block, and whether it is the epoch's last."""
        order = torch.randperm(len(self.examples), generator=seeded(self.seed, "shards", epoch)).tolist()
        mine = order[stream::streams]
        return mine[number * self.buffer : (number + 1) * self.buffer], (number + 1) * self.buffer >= len(mine)


class ShardReading:
    """An order read forwards."""

    def __init__(self, order: ShardOrder) -> None:
        self.order, self.streams = order, min(order.streams, len(order.examples))
        self.under_way: dict[int, _Stream] = {}

    def batch(self, number: int) -> list[Place]:
        """The batch of a number above the last call's."""
        turn, stream = divmod(number, self.streams)
        if stream not in self.under_way:
            self.under_way[stream] = _Stream(self.order, stream, self.streams)
        return self.under_way[stream].places(turn * self.order.batch_size, self.order.batch_size)


class _Stream:
    """One stream's endless pass, read forwards."""

    def __init__(self, order: ShardOrder, stream: int, streams: int) -> None:
        self.order, self.stream, self.streams = order, stream, streams
        self.epoch = self.number = self.start = 0  # of the block under way, and the position of its first example
        self._enter()

    def _enter(self) -> None:
        self.shards, self.is_last = self.order.block(self.epoch, self.stream, self.streams, self.number)
        self.ends = list(accumulate(self.order.examples[shard] for shard in self.shards))
        self.shuffled: list[int] | None = None

    def places(self, position: int, count: int) -> list[Place]:
        """`count` examples from a position on that isn't before the last call's."""
        found: list[Place] = []
        while len(found) < count:
            if position >= self.start + self.ends[-1]:
                self.start += self.ends[-1]
                self.epoch, self.number = (self.epoch + 1, 0) if self.is_last else (self.epoch, self.number + 1)
                self._enter()
                continue
            if self.shuffled is None:
                name = (self.order.seed, "block", self.epoch, self.stream, self.number)
                self.shuffled = torch.randperm(self.ends[-1], generator=seeded(*name)).tolist()
            first = position - self.start
            for item in self.shuffled[first : first + count - len(found)]:
                shard = bisect_right(self.ends, item)
                found.append(Place(self.shards[shard], item - (self.ends[shard - 1] if shard else 0)))
                position += 1
        return found
