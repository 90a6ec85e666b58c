"""How a network's output F becomes a clean sample: x0 = c_skip * x_t + c_out * F, for every prediction type.

`c_skip` and `c_out` are the names of Karras et al., "Elucidating the Design Space of Diffusion-Based
Generative Models" (arXiv 2206.00364), equation 7, stretched to the other parameterisations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_i2v.errors import InputError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")


def variance_preserving_coefficients(prediction_type: str, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) where x_t = sqrt(abar) x0 + sqrt(1 - abar) e, in `alphas_cumprod`'s shape and dtype.

        epsilon       F = e                                1 / sqrt(abar), -sqrt(1 - abar) / sqrt(abar)
        v_prediction  F = sqrt(abar) e - sqrt(1-abar) x0   sqrt(abar),     -sqrt(1 - abar)
        sample        F = x0                               0,              1

    Sources: Ho et al. (arXiv 2006.11239), equation 15; Salimans and Ho (arXiv 2202.00512), appendix D.

    Raises:
        InputError: another prediction type.
    """
    signal, noise = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    if prediction_type == "epsilon":
        return 1 / signal, -noise / signal
    if prediction_type == "v_prediction":
        return signal, -noise
    if prediction_type == "sample":
        return torch.zeros_like(signal), torch.ones_like(signal)
    raise InputError(f"prediction_type={prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES[:3])}")


def flow_coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(1, -sigma): x_t = (1 - sigma) x0 + sigma e and F = e - x0, so x0 = x_t - sigma F.

    Source: rectified flow, Liu et al. (arXiv 2209.03003), with the time axis of diffusers: sigma 1 is noise.
    """
    return torch.ones_like(sigma), -sigma


def edm_coefficients(sigma: Tensor, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of EDM, where x = x0 + sigma e and F is the raw network output.

        c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)
        c_out  = sigma * sigma_data / sqrt(sigma^2 + sigma_data^2)

    Source: Karras et al. (arXiv 2206.00364), table 1. `sigma` is in units of the data, of standard deviation
    `sigma_data`.
    """
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt()
