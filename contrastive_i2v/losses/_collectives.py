"""The collectives that the losses need, each counted in docs/distributed.md; one process sends nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed both.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def rank_and_size(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) where torch.distributed is not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("process_group does not hold this process: expected one of the groups it is in")
    return rank, dist.get_world_size(group)


def all_gather(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[n, ...] of each rank, of one shape -> [ranks, n, ...], bit by bit."""
    _, size = rank_and_size(group)
    if size == 1:
        return local[None]
    everyones = local.new_empty(size, *local.shape)
    # As bytes: there is no backend that can't carry those.
    _all_gather(everyones.view(-1).view(torch.uint8), local.contiguous().view(-1).view(torch.uint8), group=group)
    return everyones


def all_gather_integers(values: list[int], device: torch.device, group: dist.ProcessGroup | None) -> list[list[int]]:
    """A few numbers of each rank, as numbers: a GPU is waited for."""
    if rank_and_size(group)[1] == 1:
        return [values]
    everyones: list[list[int]] = all_gather(torch.tensor(values, device=device), group).tolist()
    return everyones


def all_reduce(local: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> Tensor:
    """The sum or the maximum over the ranks, in place."""
    if rank_and_size(group)[1] > 1:
        dist.all_reduce(local, op=op, group=group)
    return local


def reduce_scatter(everyones: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[ranks, n, ...] -> the sum over the ranks of this rank's part [n, ...]."""
    if rank_and_size(group)[1] == 1:
        return everyones[0]
    mine = torch.empty_like(everyones[0])
    _reduce_scatter(mine, everyones.flatten(0, 1), group=group)
    return mine


def pad_rows(rows: Tensor, count: int, value: int = 0) -> Tensor:
    """`rows` with rows of `value` added up to `count`."""
    if len(rows) == count:
        return rows
    return torch.cat([rows, rows.new_full((count - len(rows), *rows.shape[1:]), value)])
