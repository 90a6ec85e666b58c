"""Given frames in a window that are clean, or noised to timesteps of their own: what they are without the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.system import Condition, dropped


def drop_history(condition: Condition, image: Tensor, schedule: NoiseSchedule) -> Condition:
    """What of the condition differs without the image of some samples (bool `[B]`): `history_timesteps` at the noisiest
    one, where given frames have timesteps of their own, or else `without_image`."""
    if "history_timesteps" in condition:
        noisiest = schedule.timesteps_at(torch.tensor(1.0)).item()
        return {"history_timesteps": dropped(condition["history_timesteps"], image, noisiest)}
    return {"without_image": condition["without_image"] | image}


def noise_history(condition: Condition, timesteps: Tensor | float) -> Condition:
    """As `System.noise_history`, of a condition with `history_timesteps`."""
    least: Any = timesteps
    return condition | {"history_timesteps": condition["history_timesteps"].clamp(min=least)}
