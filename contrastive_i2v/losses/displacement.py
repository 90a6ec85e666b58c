"""Contrast displacements instead of latents: the same op on problems shifted by an origin."""

from __future__ import annotations

from torch import Tensor


def subtract_from_x0(
    origins: Tensor, prediction: Tensor, noisy: Tensor, target: Tensor, c_skip: Tensor, c_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(prediction, noisy, target) of the problem whose x0 is `x0 - origins` and whose error is the same.

        x0 - o = c_skip (x_t - a o) + c_out (F - b o),    a = c_skip / n,  b = c_out / n,  n = c_skip^2 + c_out^2
        (F - b o) - (target - b o) = F - target

    Of all such shifts this one is the smallest, so nothing is divided by a coefficient that vanishes: n is 1 for
    v and sample prediction and at least 1 for the others. For v prediction the result is the diffusion of the
    residual `clean - o` itself.

    Args:
        origins: [B, *latent] on the scale of the clean latents.
        prediction: [B, *latent] network output F.
        noisy: [B, *latent] x_t.
        target: [B, *latent] what F should be.
        c_skip: [B], see diffusion/prediction.py.
        c_out: [B].

    Raises:
        ValueError: `origins` has another shape than the prediction.
    """
    if origins.shape != prediction.shape:
        raise ValueError(f"origins is {list(origins.shape)}: expected the prediction's shape, {list(prediction.shape)}")
    column = (-1, *(1,) * (prediction.ndim - 1))
    squared = (c_skip.square() + c_out.square()).view(column)
    skip, out = c_skip.view(column) / squared, c_out.view(column) / squared
    return prediction - out * origins, noisy - skip * origins, target - out * origins
