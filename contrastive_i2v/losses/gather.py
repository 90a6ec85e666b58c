"""In-batch negatives from every rank: the clean latents are constants, so they are gathered once, in bfloat16,
and the backward pass sends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive_i2v.losses._collectives import all_gather, all_gather_integers, pad_rows, rank_and_size


class GatheredBank(NamedTuple):
    """Every rank's latents, the same on every rank, bit by bit."""

    latents: Tensor
    """[N, *latent], N the sum over the ranks of B: rank 0's rows first."""
    groups: Tensor | None
    """int64 [N], or None."""
    positives: Tensor
    """int64 [B]: where this rank's own rows are."""
    loss_scale: float
    """`ranks * B / N`, 1 where all ranks have the same B; see `gather_bank`."""


def gather_bank(
    latents: Tensor,
    groups: Tensor | None = None,
    *,
    dtype: torch.dtype | None = torch.bfloat16,
    sizes: Sequence[int] | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> GatheredBank:
    """One bank from the latents of all ranks, to be passed to a loss with this rank's own queries.

        bank = concat_r(round(latents_r))          positives_i = sum_{q < r} B_q + i

    A rank's loss stays the mean over its own B queries. `DistributedDataParallel` averages the ranks' gradients,
    so with the same B everywhere the step is that of one process on the concatenated batch. With a ragged last
    batch multiply the loss by `loss_scale`, or queries of a small batch weigh more than others.

    Each rank sends and receives `(ranks - 1) / ranks * N * D * itemsize` bytes, and 8 a row for the groups.
    Several banks share one `groups`: give it with the first alone.

    The own rows are rounded as the others' are, so all ranks see one bank. One process has nothing to send and
    rounds nothing: it keeps its precision. For one bank at any number of ranks, round beforehand
    (`gather_bank(latents.bfloat16())`) or give `dtype=None`.

    Args:
        latents: [B, *latent] of this rank, constant. B may differ between ranks.
        groups: int64 [B], numbered alike on all ranks (say, the video's index in the data set).
        dtype: on the wire and of the bank; None keeps the latents' own.
        sizes: B of every rank, where it is known. None asks for them, which on a GPU waits for the device.
        process_group: None is the default group.

    Raises:
        ValueError: latents require a gradient, or shapes, dtypes or `groups` don't fit together, also between
            ranks (then on all of them; with `sizes` given that is not looked at).

    Source: negatives from all ranks' batches are CLIP's (Radford et al., 2021, arXiv:2103.00020, section 2.5). Here
    they are constants, so none of the gradient traffic is left.
    """
    if latents.dim() < 2 or latents.numel() == 0 or not latents.is_floating_point():
        raise ValueError(
            f"latents is {latents.dtype} {list(latents.shape)}: expected floating [B, *latent] with at least one row"
        )
    if latents.requires_grad and torch.is_grad_enabled():
        raise ValueError("latents requires a gradient, but a gathered bank is a constant: detach it")
    if groups is not None and (groups.dtype != torch.int64 or groups.shape != latents.shape[:1]):
        raise ValueError(f"groups is {groups.dtype} {list(groups.shape)}: expected torch.int64 [{len(latents)}]")
    if groups is not None and groups.device != latents.device:
        raise ValueError(f"groups is on {groups.device}: expected the latents' device, {latents.device}")
    rank, ranks = rank_and_size(process_group)
    if sizes is None:
        sizes = _ask_sizes(latents, groups, process_group)
    if len(sizes) != ranks or sizes[rank] != len(latents):
        raise ValueError(
            f"sizes is {list(sizes)}: expected one entry for each of the {ranks} ranks, and {len(latents)} for rank "
            f"{rank}, the rows of its latents"
        )
    latents = latents.detach()
    if ranks > 1:
        latents = _gather_rows(latents if dtype is None else latents.to(dtype), sizes, process_group)
        groups = None if groups is None else _gather_rows(groups, sizes, process_group)
    start = sum(sizes[:rank])
    return GatheredBank(
        latents,
        groups,
        torch.arange(start, start + sizes[rank], device=latents.device),
        ranks * sizes[rank] / sum(sizes),
    )


def _ask_sizes(latents: Tensor, groups: Tensor | None, group: dist.ProcessGroup | None) -> list[int]:
    everyones = all_gather_integers([len(latents), latents[0].numel(), int(groups is not None)], latents.device, group)
    for name, values in (("elements in a latent", 1), ("groups (1) or none (0)", 2)):
        if len({one[values] for one in everyones}) > 1:
            raise ValueError(f"the ranks disagree: {name} are {[one[values] for one in everyones]}, rank 0 first")
    return [one[0] for one in everyones]


def _gather_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    longest = max(sizes)
    everyones = all_gather(pad_rows(rows, longest), group)  # [ranks, longest, ...]
    if min(sizes) == longest:
        return everyones.flatten(0, 1)
    return torch.cat([part[:count] for part, count in zip(everyones, sizes, strict=True)])
