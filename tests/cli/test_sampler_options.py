"""A model is sampled as suits it, unless somebody says otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from contrastive_i2v.cli.sampler_options import SamplerOptions

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.generators import Sampler
from contrastive_i2v.models import InstructPix2Pix


def test_tiny_is_sampled_without_guidance_and_stable_diffusion_with() -> None:
    tiny = InstructPix2Pix.from_pretrained("tiny")
    sd: Any = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(cross_attention_dim=768)))
    assert SamplerOptions().sampler(tiny) == Sampler(steps=8, guidance_scale=1.0, image_guidance_scale=1.0)
    assert SamplerOptions().sampler(sd) == Sampler(steps=20, guidance_scale=7.5, image_guidance_scale=1.5)
    chosen = SamplerOptions(steps=3, guidance_scale=0.0, image_guidance_scale=2.0)
    assert chosen.sampler(tiny) == Sampler(steps=3, guidance_scale=0.0, image_guidance_scale=2.0)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match="steps: expected at least 1, got 0"):
        SamplerOptions(steps=0)
