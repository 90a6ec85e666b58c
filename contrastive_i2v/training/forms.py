"""The registry of loss forms, by name: what recipes train with, and demo and experiment hold against each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.system import SystemConfig
from contrastive_i2v.training.config import LossConfig

BASELINE = "baseline"
"""The form that others are held against."""
_DEFAULT = LossConfig()
_NO_TERM = LossConfig(target_weight=0.0)


@dataclass(frozen=True, kw_only=True)
class Form:
    """A loss and what it is there to show."""

    loss: LossConfig
    about: str
    condition_noise: float | None = None
    """None = as in the whole run or experiment."""
    system: SystemConfig | None = None
    """What the model is conditioned on; None = as in the whole run or experiment."""


FORMS: dict[str, Form] = {
    BASELINE: Form(loss=_NO_TERM, about="no contrastive term"),
    "contrastive": Form(loss=_DEFAULT, about="the default: target bank, cosine, temperature 0.07, weight 0.2, gated"),
    "literal": Form(
        loss=LossConfig(target_weight=None, input_weight=None, temperature=1.0, normalize=False, gate="none"),
        about="the published form: dot products, both banks, 1/D, every step",
    ),
    "weight-1": Form(loss=replace(_DEFAULT, target_weight=1.0), about="the default at five times the weight"),
    "no-gate": Form(loss=replace(_DEFAULT, gate="none"), about="the default at every timestep alike"),
    "both-banks": Form(loss=replace(_DEFAULT, input_weight=0.2), about="the default, and the input frame's bank"),
    "temperature-0.03": Form(loss=replace(_DEFAULT, temperature=0.03), about="the default, sharper"),
    "temperature-1": Form(
        loss=replace(_DEFAULT, temperature=1.0, gate="none"), about="cosines at temperature 1, every timestep"
    ),
    "dot-product": Form(
        loss=replace(_DEFAULT, normalize=False, temperature=1.0, target_weight=None), about="dot products, 1/D, gated"
    ),
    "same-clip-negatives": Form(
        loss=replace(_DEFAULT, false_negatives=False), about="other pairs of the same clip stay negatives"
    ),
    "pull": Form(
        loss=replace(_DEFAULT, input_weight=0.3, temperature=1.0, gate="none"),
        about="cosines at temperature 1 to the target and, for coherence, the input frame, every timestep",
    ),
    "past-2": Form(loss=_NO_TERM, system=InstructPix2PixConfig(past_frames=2), about="two past frames"),
    "past-4": Form(loss=_NO_TERM, system=InstructPix2PixConfig(past_frames=4), about="four past frames"),
    "anchor": Form(loss=_NO_TERM, system=InstructPix2PixConfig(anchor=True), about="the first frame beside the last"),
    "noise-level": Form(
        loss=_NO_TERM, system=InstructPix2PixConfig(noise_level=True), about="the noise on the condition is told"
    ),
    "no-noise": Form(loss=_NO_TERM, condition_noise=0.0, about="no contrastive term, no noise on the condition"),
}
