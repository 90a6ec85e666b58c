"""Sampling: guidance and rollouts, as functions over a system and a diffusers scheduler."""

from contrastive_i2v.ops.guided_step import guidance_branches
from contrastive_i2v.sampling.guidance import branch_conditions, guided_prediction, three_way_guidance
from contrastive_i2v.sampling.interpolation import resample_trajectory
from contrastive_i2v.sampling.linear_steps import LinearSteps, linear_steps
from contrastive_i2v.sampling.rollout import RolledWindow, fill_in, first_frames, roll_windows, rollout

__all__ = [
    "LinearSteps",
    "RolledWindow",
    "branch_conditions",
    "fill_in",
    "first_frames",
    "guidance_branches",
    "guided_prediction",
    "linear_steps",
    "resample_trajectory",
    "roll_windows",
    "rollout",
    "three_way_guidance",
]
