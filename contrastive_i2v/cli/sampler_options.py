"""How a rollout is sampled, for every command that rolls out a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.generators import Sampler

if TYPE_CHECKING:
    from contrastive_i2v.models import InstructPix2Pix

TINY = Sampler(steps=8, guidance_scale=1.0, image_guidance_scale=1.0)
"""What the packaged model wants: at the others' 7.5 and 1.5 its rollouts fall apart."""


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """None = what suits the model."""

    steps: int | None = None
    """Scheduler steps a frame; None = 20, for tiny and models made from it 8."""
    guidance_scale: float | None = None
    """Towards the prompt, 1 = off; None = 7.5, for tiny and models made from it 1."""
    image_guidance_scale: float | None = None
    """Towards the image, 1 = off; None = 1.5, for tiny and models made from it 1. Both off: a third of the time."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps: expected at least 1, got {self.steps}")

    def sampler(self, model: InstructPix2Pix) -> Sampler:
        """These options, and the model's where they are None."""
        from contrastive_i2v.models.tiny import PROMPT_FEATURES

        usual = TINY if model.unet.config.cross_attention_dim == PROMPT_FEATURES else Sampler()
        return Sampler(
            steps=usual.steps if self.steps is None else self.steps,
            guidance_scale=usual.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            image_guidance_scale=(
                usual.image_guidance_scale if self.image_guidance_scale is None else self.image_guidance_scale
            ),
        )
