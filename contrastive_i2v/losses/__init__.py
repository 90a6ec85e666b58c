"""Losses for any latent diffusion training loop; they know no network and need torch alone."""

from contrastive_i2v.losses.contrastive_diffusion import ContrastiveDiffusionLoss, DiffusionLossOutput
from contrastive_i2v.losses.gather import GatheredBank, gather_bank
from contrastive_i2v.losses.gradient_cache import cached_backward
from contrastive_i2v.losses.memory_bank import Candidates, MemoryBank
from contrastive_i2v.losses.sharded import sharded_contrastive_diffusion_loss
from contrastive_i2v.losses.weighting import min_snr_weights

__all__ = [
    "Candidates",
    "ContrastiveDiffusionLoss",
    "DiffusionLossOutput",
    "GatheredBank",
    "MemoryBank",
    "cached_backward",
    "gather_bank",
    "min_snr_weights",
    "sharded_contrastive_diffusion_loss",
]
