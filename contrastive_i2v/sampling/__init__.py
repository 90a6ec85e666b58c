"""Sampling: guidance and rollouts, as functions over a system and a diffusers scheduler."""

from contrastive_i2v.ops.guided_step import guidance_branches
from contrastive_i2v.sampling.guidance import branch_conditions, guided_prediction, three_way_guidance
from contrastive_i2v.sampling.interpolation import resample_trajectory
from contrastive_i2v.sampling.linear_steps import LinearSteps, linear_steps
from contrastive_i2v.sampling.rollout import fill_in, first_frames, rollout

__all__ = [
    "LinearSteps",
    "branch_conditions",
    "fill_in",
    "first_frames",
    "guidance_branches",
    "guided_prediction",
    "linear_steps",
    "resample_trajectory",
    "rollout",
    "three_way_guidance",
]
