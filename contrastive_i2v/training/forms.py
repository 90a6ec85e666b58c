"""The registry of forms of training, by name: what recipes train with, and demo and experiment compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.training.config import LossConfig, OwnSamplesConfig, TimestepsConfig, TrainConfig

BASELINE = "baseline"
"""The form that others are held against."""
_DEFAULT = LossConfig()
_NO_TERM = LossConfig(target_weight=0.0)


@dataclass(frozen=True)
class Form:
    """What a training changes, and what it is there to show."""

    about: str
    changes: Mapping[str, Any]
    """Field of `TrainConfig`, or of a part of it as "data.frames.offsets" -> its value; the others are as in the whole
    run or experiment."""
    share_of_steps: float = 1.0
    """Of the whole run's or experiment's."""

    def apply(self, config: TrainConfig) -> TrainConfig:
        """That training in this form."""
        formed: TrainConfig = _replaced(
            config, {"steps": max(1, round(self.share_of_steps * config.steps)), **self.changes}
        )
        return formed


def _replaced(config: Any, changes: Mapping[str, Any]) -> Any:
    """With its fields, and those of its parts, changed at once: one without the other may be refused."""
    whole = {name: value for name, value in changes.items() if "." not in name}
    for part in dict.fromkeys(name.partition(".")[0] for name in changes if "." in name):
        inside = {name.partition(".")[2]: value for name, value in changes.items() if name.startswith(f"{part}.")}
        whole[part] = _replaced(getattr(config, part), inside)
    return replace(config, **whole)


def _form(about: str, loss: LossConfig = _NO_TERM, *, share_of_steps: float = 1.0, **changes: Any) -> Form:
    return Form(about, {"loss": loss, **changes}, share_of_steps)


_ROLLOUTS = OwnSamplesConfig(
    condition_share=0.5, depth=5, clips=32, refresh=60, steps=8, guidance_scale=1.0, image_guidance_scale=1.0
)
"""Half of a batch is conditioned on own frames, one to four frames deep."""
_CONTRASTED = replace(_ROLLOUTS, condition_share=0.0, contrast_share=0.5)
_PAST_2_ANCHOR = InstructPix2PixConfig(past_frames=2, anchor=True)

FORMS: dict[str, Form] = {
    BASELINE: _form("no contrastive term"),
    "half-updates": _form("control: no contrastive term, half the updates", share_of_steps=0.5),
    "contrastive": _form("the default: target bank, cosine, temperature 0.07, weight 0.2, gated", _DEFAULT),
    "literal": _form(
        "the published form: dot products, both banks, 1/D, every step",
        LossConfig(target_weight=None, input_weight=None, temperature=1.0, normalize=False, gate="none"),
    ),
    "weight-1": _form("the default at five times the weight", replace(_DEFAULT, target_weight=1.0)),
    "no-gate": _form("the default at every timestep alike", replace(_DEFAULT, gate="none")),
    "both-banks": _form("the default, and the input frame's bank", replace(_DEFAULT, input_weight=0.2)),
    "temperature-0.03": _form("the default, sharper", replace(_DEFAULT, temperature=0.03)),
    "temperature-1": _form("cosines at temperature 1, every timestep", replace(_DEFAULT, temperature=1.0, gate="none")),
    "dot-product": _form(
        "dot products, 1/D, gated", replace(_DEFAULT, normalize=False, temperature=1.0, target_weight=None)
    ),
    "same-clip-negatives": _form(
        "other pairs of the same clip stay negatives", replace(_DEFAULT, false_negatives=False)
    ),
    "pull": _form(
        "cosines at temperature 1 to the target and, for coherence, the input frame, every timestep",
        replace(_DEFAULT, input_weight=0.3, temperature=1.0, gate="none"),
    ),
    "past-2": _form("two past frames", system=InstructPix2PixConfig(past_frames=2)),
    "past-4": _form("four past frames", system=InstructPix2PixConfig(past_frames=4)),
    "anchor": _form("the first frame beside the last", system=InstructPix2PixConfig(anchor=True)),
    "past-2-anchor": _form("two past frames and the first one", system=_PAST_2_ANCHOR),
    "keyframes": Form(
        "strides of 1, 2 and 4 frames, which the network is told, and the frame ahead where it is known",
        {
            "loss": _NO_TERM,
            "system": InstructPix2PixConfig(max_stride=4),
            "data.frames.offset_std": 0.0,
            "data.frames.offsets": (1, 2, 4),
        },
    ),
    "noise-level": _form("the noise on the condition is told", system=InstructPix2PixConfig(noise_level=True)),
    "no-noise": _form("no contrastive term, no noise on the condition", condition_noise=0.0),
    "noisy-timesteps": _form("more of the noisy timesteps (shift 3)", timesteps=TimestepsConfig(shift=3.0)),
    "own-conditions": _form("half the batch conditioned on own rollouts", own_samples=_ROLLOUTS),
    "own-conditions-anchor": _form(
        "own rollouts as conditions, the first frame beside the last",
        own_samples=_ROLLOUTS,
        system=InstructPix2PixConfig(anchor=True),
    ),
    "own-conditions-past-2-anchor": _form(
        "own rollouts as conditions, two past frames and the first one", own_samples=_ROLLOUTS, system=_PAST_2_ANCHOR
    ),
    "own-errors": _form(
        "own errors added to half of the true conditions",
        own_samples=replace(_ROLLOUTS, condition_share=0.0, error_share=0.5),
    ),
    "own-sample-contrast": _form(
        "truth against own samples (Direct Discriminative Optimization), weight 0.3, half the batch",
        replace(_NO_TERM, own_weight=0.3),
        own_samples=_CONTRASTED,
    ),
    "own-sample-positive": _form(
        "control: the positive half of own-sample-contrast alone",
        replace(_NO_TERM, own_weight=0.3, own_positive_only=True),
        own_samples=_CONTRASTED,
    ),
    "flow-contrast": _form("Contrastive Flow Matching, weight 0.05", replace(_NO_TERM, flow_contrast_weight=0.05)),
    "text-frames": _form(
        "captions projected into the latent space as the bank, weight 0.2", replace(_NO_TERM, text_weight=0.2)
    ),
    "dispersive": _form("dispersive loss on the UNet's middle, weight 0.5", replace(_NO_TERM, dispersive_weight=0.5)),
}
