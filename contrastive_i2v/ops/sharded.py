"""One shard's share of a cross entropy whose candidates are spread over ranks: the softmax statistics of its rows
and their weighted sum, both relative to the shard's own maximum, so that shards can be merged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STRIP_ELEMENTS = 2**24  # logits at a time; 64 MiB in float32


class ShardScores(NamedTuple):
    """Of Q queries against the rows of one shard, with l_ij = <x_i, z_j> / temperature.

    To merge shards r, with M = max_r(maximum): sum_r(exp(maximum - M) * rest) and the same of `pull`,
    and sum_r(positive_logit).
    """

    maximum: Tensor  # [Q] max of l_ij over the rows that are not excluded; -inf where all are
    rest: Tensor  # [Q] sum of exp(l_ij - maximum) over those rows but the positive
    positive_logit: Tensor  # [Q], 0 where the positive is in another shard; NaN where any l_ij is not finite
    pull: Tensor | None  # [Q, D] sum of exp(l_ij - maximum) z_j over the rows of `rest`


def score_shard(
    queries: Tensor,  # [Q, D]
    rows: Tensor,  # [N, D]
    positives: Tensor,  # [Q], a row, or < 0 where it is not in this shard
    temperature: Tensor,  # []
    query_groups: Tensor | None,  # [Q]
    row_groups: Tensor | None,  # [N]
    pull: bool,
) -> ShardScores:
    """Scores in strips of queries: no more than `STRIP_ELEMENTS` logits exist at a time."""
    maximum, rest, positive_logit = queries.new_empty(3, len(queries)).unbind()
    scores = ShardScores(maximum, rest, positive_logit, torch.empty_like(queries) if pull else None)
    for strip in _strips(len(queries), len(rows)):
        logits = queries[strip] @ rows.T / temperature  # [q, N]
        index, here = positives[strip].clamp(min=0)[:, None], (positives[strip] >= 0)[:, None]  # [q, 1]
        # A NaN or infinity goes on, also from a row that is excluded or that the softmax ignores.
        positive_logit[strip] = torch.where(here, logits.gather(1, index), 0.0)[:, 0] + (0 * logits).sum(1)
        if query_groups is not None and row_groups is not None:
            own_group = query_groups[strip, None] == row_groups
            own_group.scatter_(1, index, own_group.gather(1, index) & ~here)
            logits.masked_fill_(own_group, -torch.inf)
        maximum[strip] = logits.amax(1)
        shift = maximum[strip, None]
        weights = logits.sub_(torch.where(shift == -torch.inf, 0.0, shift)).exp_()
        weights.scatter_(1, index, torch.where(here, 0.0, weights.gather(1, index)))
        rest[strip] = weights.sum(1)
        if scores.pull is not None:
            torch.mm(weights, rows, out=scores.pull[strip])
    return scores


def shard_gradient(
    scores: ShardScores,
    rows: Tensor,  # [N, D]
    positives: Tensor,  # [Q], as in `score_shard`
    maximum: Tensor,  # [Q], over all shards, as the two that follow
    rest: Tensor,  # [Q], relative to `maximum`
    positive_logit: Tensor,  # [Q]
    has_positive: Tensor,  # bool [Q]: it is in some shard
) -> Tensor:
    """This shard's part of sum_j (p_ij - y_ij) z_j, [Q, D], in `scores.pull`'s memory."""
    assert scores.pull is not None
    total = rest + torch.exp(positive_logit - maximum)
    # 1 - p of the positive is the sum of the others: no cancellation when the softmax saturates.
    share = torch.where(has_positive, torch.exp(scores.maximum - maximum) / total, 0.0)
    positive_share = torch.where(positives >= 0, rest / total, 0.0)
    for strip in _strips(len(scores.pull), rows.shape[1]):
        part = scores.pull[strip].mul_(share[strip, None])
        part.addcmul_(rows[positives[strip].clamp(min=0)], positive_share[strip, None], value=-1)
    return scores.pull


def merged_cross_entropy(maximum: Tensor, rest: Tensor, positive_logit: Tensor, has_positive: Tensor) -> Tensor:
    """[Q] from the statistics over all shards; 0 without a positive, NaN where a logit is not finite."""
    # Both forms are sums of terms >= 0; log1p keeps a saturated row's small loss.
    cross_entropy = torch.where(
        positive_logit == maximum,
        torch.log1p(rest),
        maximum - positive_logit + torch.log(rest + torch.exp(positive_logit - maximum)),
    )
    return torch.where(has_positive, cross_entropy, positive_logit)


def _strips(queries: int, width: int) -> list[slice]:
    height = max(1, STRIP_ELEMENTS // width)
    return [slice(start, start + height) for start in range(0, queries, height)]
