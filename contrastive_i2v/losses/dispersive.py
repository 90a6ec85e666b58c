"""Dispersive loss: features of a batch repel each other, without positives and without a second view."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contrastive_i2v.errors import InputError


def dispersive_loss(features: Tensor, temperature: float = 0.5, *, groups: Tensor | None = None) -> Tensor:
    """log mean_ij exp(-|h_i - h_j|^2 / (D temperature)), over all pairs, each with itself included.

    0 where all features are the same, -log B where they are far apart: it is the denominator of InfoNCE alone.

    Args:
        features: [B, *], D numbers each, of a layer inside the network.
        temperature: of the squared distances, > 0. The source uses 0.5, and a weight of 0.5.
        groups: int64 [B]; pairs within a group, as frames of one video, are left out but for i = j. None = every row
            is a group of its own.

    Returns:
        Scalar, float32 at least.

    Raises:
        InputError: a temperature that isn't positive.

    Source: Wang and He, "Diffuse and Disperse: Image Generation with Representation Regularization" (arXiv 2506.09027),
    its InfoNCE-like form with squared l2 distances.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature={temperature}; expected a number > 0")
    rows = features.flatten(1).to(torch.promote_types(features.dtype, torch.float32))
    distances = (rows[:, None] - rows[None]).square().mean(2)  # [B, B]
    logits = -distances / temperature
    if groups is None:
        return logits.logsumexp((0, 1)) - 2 * math.log(len(rows))
    places = torch.arange(len(rows), device=rows.device)
    pairs = (groups[:, None] != groups[None]) | (places[:, None] == places[None])
    return logits.masked_fill(~pairs, -torch.inf).logsumexp((0, 1)) - pairs.sum().log()
