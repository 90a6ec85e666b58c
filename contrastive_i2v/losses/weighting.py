"""Min-SNR weights of the diffusion loss: one weight on the x0 error, whatever the network predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_i2v.diffusion import NoiseSchedule


def min_snr_weights(schedule: NoiseSchedule, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights w [B] float32 with which w * |F - target|^2 equals min(snr, gamma) * |x0_predicted - x0|^2.

        epsilon       min(snr, gamma) / snr           since |F - e|^2 = snr * |x0 error|^2
        v_prediction  min(snr, gamma) / (snr + 1)
        sample        min(snr, gamma)
        flow          min((1 - s)^2, gamma * s^2)     since |F - (e - x0)|^2 = |x0 error|^2 / s^2

    With zero terminal SNR the last timestep gets weight 0 under v prediction and sample prediction.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv 2303.09556),
    section 3.4, which recommends gamma = 5; flow from the same identity.
    """
    if schedule.prediction_type == "flow":
        sigma = timesteps.float() / schedule.num_train_timesteps
        return torch.minimum((1 - sigma) ** 2, gamma * sigma**2)
    snr = schedule.snr(timesteps)
    clipped = snr.clamp(max=gamma)
    if schedule.prediction_type == "epsilon":
        return clipped / snr
    if schedule.prediction_type == "v_prediction":
        return clipped / (snr + 1)
    return clipped
