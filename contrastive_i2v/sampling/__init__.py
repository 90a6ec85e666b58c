"""Sampling: guidance and rollouts, as functions over a denoiser and a diffusers scheduler."""

from contrastive_i2v.sampling.guidance import Denoiser, guided_prediction, three_way_guidance
from contrastive_i2v.sampling.rollout import frame_generator, frame_noise, rollout

__all__ = [
    "Denoiser",
    "frame_generator",
    "frame_noise",
    "guided_prediction",
    "rollout",
    "three_way_guidance",
]
