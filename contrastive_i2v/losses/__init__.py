"""Losses for any latent diffusion training loop; they know no network and need torch alone."""

from contrastive_i2v.losses.balance import GradientBalance
from contrastive_i2v.losses.contrastive_diffusion import ContrastiveDiffusionLoss, DiffusionLossOutput
from contrastive_i2v.losses.dispersive import dispersive_loss
from contrastive_i2v.losses.gather import GatheredBank, gather_bank
from contrastive_i2v.losses.gradient_cache import cached_backward
from contrastive_i2v.losses.memory_bank import Candidates, MemoryBank
from contrastive_i2v.losses.other_targets import distance_to_other_targets
from contrastive_i2v.losses.own_samples import OwnSampleContrast, OwnSampleOutput
from contrastive_i2v.losses.representation_alignment import RepresentationAlignmentLoss
from contrastive_i2v.losses.sharded import sharded_contrastive_diffusion_loss
from contrastive_i2v.losses.text_frames import TextFrameLoss, TextFrameOutput
from contrastive_i2v.losses.weighting import min_snr_weights

__all__ = [
    "Candidates",
    "ContrastiveDiffusionLoss",
    "DiffusionLossOutput",
    "GatheredBank",
    "GradientBalance",
    "MemoryBank",
    "OwnSampleContrast",
    "OwnSampleOutput",
    "RepresentationAlignmentLoss",
    "TextFrameLoss",
    "TextFrameOutput",
    "cached_backward",
    "dispersive_loss",
    "distance_to_other_targets",
    "gather_bank",
    "min_snr_weights",
    "sharded_contrastive_diffusion_loss",
]
