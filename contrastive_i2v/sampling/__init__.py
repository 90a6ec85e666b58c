"""Sampling: guidance and rollouts, as functions over a denoiser and a diffusers scheduler."""

from contrastive_i2v.sampling.guidance import Denoiser, guided_prediction, three_way_guidance
from contrastive_i2v.sampling.interpolation import resample_trajectory
from contrastive_i2v.sampling.linear_steps import LinearSteps, linear_steps
from contrastive_i2v.sampling.rollout import frame_generator, frame_noise, rollout

__all__ = [
    "Denoiser",
    "LinearSteps",
    "frame_generator",
    "frame_noise",
    "guided_prediction",
    "linear_steps",
    "resample_trajectory",
    "rollout",
    "three_way_guidance",
]
