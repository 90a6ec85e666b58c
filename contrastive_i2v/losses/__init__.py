"""Losses for any latent diffusion training loop; they know no network and need torch alone."""

from contrastive_i2v.losses.contrastive_diffusion import ContrastiveDiffusionLoss, DiffusionLossOutput
from contrastive_i2v.losses.weighting import min_snr_weights

__all__ = ["ContrastiveDiffusionLoss", "DiffusionLossOutput", "min_snr_weights"]
