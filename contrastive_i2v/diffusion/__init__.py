"""Prediction types, x0 coefficients, noise schedules, zero terminal SNR: pure functions, torch alone."""

from contrastive_i2v.diffusion.prediction import (
    PREDICTION_TYPES,
    edm_coefficients,
    flow_coefficients,
    variance_preserving_coefficients,
)
from contrastive_i2v.diffusion.schedule import NoiseSchedule, TimestepDistribution, rescale_zero_terminal_snr

__all__ = [
    "PREDICTION_TYPES",
    "NoiseSchedule",
    "TimestepDistribution",
    "edm_coefficients",
    "flow_coefficients",
    "rescale_zero_terminal_snr",
    "variance_preserving_coefficients",
]
