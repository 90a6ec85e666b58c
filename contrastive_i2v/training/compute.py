"""What a run costs, in units of a plain optimizer step: so that forms can be compared at equal compute."""

from __future__ import annotations

import math
from dataclasses import dataclass

from contrastive_i2v.errors import InputError
from contrastive_i2v.sampling import guidance_branches
from contrastive_i2v.system import System
from contrastive_i2v.training.config import TrainConfig

FORWARD = 0.3
"""A forward pass without gradient, as a share of forward and backward; measured 0.30 on a UNet of 1 M parameters."""


@dataclass(frozen=True)
class Compute:
    """The cost of a run, known before it starts. A unit is the forward and backward pass of a step's batches."""

    step: float
    """Units of an optimizer step."""
    refresh: float = 0.0
    """Units of rolling out the own samples, before step 0 and every `every` steps."""
    every: int = 1

    def spent(self, steps: int) -> float:
        """Units after so many steps."""
        return steps * self.step + math.ceil(steps / self.every) * self.refresh

    def steps_within(self, units: float) -> int:
        """The most steps that cost at most so many units. Raises InputError where not one does."""
        low, high = 0, math.ceil(units / self.step) + 1  # spent(low) <= units < spent(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.spent(middle) <= units + 1e-9 else (low, middle)
        if low == 0:
            raise InputError(
                f"steps={units:g} with equal_compute: one step and the first rollouts cost {self.spent(1):.3g} units; "
                "expected more steps, or less own_samples.clips, depth or steps"
            )
        return low


def compute_of(config: TrainConfig, system: System, processes: int, *, beside: float = 0.0) -> Compute:
    """What each process of a run does; `beside`: units a step of losses that run other networks."""
    own, loss, batch = config.own_samples, config.loss, config.batch_size
    share = sum(own.rows(batch)) / batch if loss.own_weight else 0.0  # of the rows, contrasted with own samples
    step = (
        1 + beside + FORWARD * config.gradient_cache + share * (FORWARD if loss.own_positive_only else 1 + 2 * FORWARD)
    )
    if not own.on:
        return Compute(step)
    sampler = own.over(system.sampler)
    branches = guidance_branches(sampler.guidance_scale, sampler.image_guidance_scale, sampler.history_level > 0)
    rows = own.clips / processes * own.depth * sampler.steps * len(branches)
    return Compute(step, FORWARD * rows / (batch * config.gradient_accumulation), own.refresh)
