"""Contrastive Flow Matching's term: away from what another example's prediction should be."""

from __future__ import annotations

import torch
from torch import Tensor


def distance_to_other_targets(
    prediction: Tensor, target: Tensor, *, groups: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """1/B sum_i w_i mean_d (F_i - target_j(i))^2, with j(i) the next row of the batch that is of another group.

    Contrastive Flow Matching subtracts lambda times this from the loss. For every prediction type: target is noise, v,
    the clean latent or the flow. A row without another group in the batch has no term.

    With unrelated targets of mean m the optimum is (F* - lambda m) / (1 - lambda), F* that of the loss without it: the
    prediction *rescaled*, by 1.05 at lambda 0.05. So does a scale at sampling, for free.

    Args:
        prediction: [B, *latent], gets the gradient.
        target: [B, *latent].
        groups: int64 [B], the video a row is from; None = every row is a group of its own.
        weights: [B], w; None = 1.

    Returns:
        Scalar, float32 at least.

    Source: Stoica et al., "Contrastive Flow Matching" (arXiv 2506.05350), with lambda 0.05.
    """
    size = len(prediction)
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    if size == 1:
        return 0.0 * prediction.to(dtype).sum()
    places = torch.arange(size, device=prediction.device)
    groups = places if groups is None else groups
    others = (places[:, None] + places[None, 1:]) % size  # [B, B - 1], the rows that come next
    foreign = groups[:, None] != groups[others]
    which = others.gather(1, foreign.int().argmax(1, keepdim=True)).squeeze(1)  # the first that is foreign
    distance = (prediction.to(dtype) - target.to(dtype)[which]).square().flatten(1).mean(1)
    used = foreign.any(1).to(dtype) * (1 if weights is None else weights.to(dtype))
    return (used * distance).mean()
