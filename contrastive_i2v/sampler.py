"""How a window is sampled: what belongs to a model, and what a person says of it. Needs torch alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from contrastive_i2v.errors import InputError, check_fields


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a window is sampled."""

    steps: int = 20
    """Scheduler steps a window."""
    keyframe_stride: int = 1
    """K: every K-th frame is generated first, each from the one before it, then the frames halfway between two that are
    there, until all are; a power of two. 1 = one frame after the other. Above 1 it needs a model that was trained with
    `--system.max-stride` K or more."""
    guidance_scale: float = 7.5
    """s_T, towards the prompt; 1 = off."""
    image_guidance_scale: float = 1.5
    """s_I, towards the given frames; 1 = off. With both off a step costs one forward pass a sample instead of three."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts at timesteps from the first to the second share of all, 0 clean and 1 noise; off elsewhere."""
    history_level: float = 0.0
    """k_H: s_I is towards given frames noised to this share of the timesteps, beside the clean ones at 1 (fractional
    history guidance); 0 = towards the clean ones (vanilla). Other than 0 needs a system with `frame_timesteps`."""
    prediction_scale: float = 1.0
    """s in the scale of the guided prediction F: the sampler takes (s + slope (t / T - 1/2)) F for it."""
    prediction_slope: float = 0.0
    """The slope there: how much larger the scale is at the noisiest timestep than at the cleanest."""

    def __post_init__(self) -> None:
        _check_sampler(self)

    def scale(self, share: Tensor) -> Tensor:
        """What the guided prediction is multiplied by at timesteps `t / T`, in their shape and dtype.

        A sampler's inputs drift from those that the network was trained on (exposure bias), so a prediction that is
        right in training is too small or too large in a rollout; `contrastive-i2v calibrate` finds the scale.

        Source: epsilon scaling, Ning et al., "Elucidating the Exposure Bias in Diffusion Models" (arXiv 2308.15321),
        section 5, where the noise is divided by k t + b; here it is any prediction, and a factor.
        """
        return self.prediction_scale + self.prediction_slope * (share - 0.5)

    def guided(self, share: Tensor) -> list[bool]:
        """Whether guidance acts at timesteps `t / T`.

        Source: Kynkaanniemi et al., "Applying Guidance in a Limited Interval" (arXiv 2404.07724).
        """
        low, high = self.guidance_interval
        return [bool(low <= one <= high) for one in share]

    def __str__(self) -> str:
        said = f"{self.steps} steps, guidance text {self.guidance_scale:g}, image {self.image_guidance_scale:g}"
        if self.keyframe_stride > 1:
            said = f"keyframes {self.keyframe_stride} apart, {said}"
        if self.guidance_interval != (0, 1):
            said += " at {:g} to {:g}".format(*self.guidance_interval)
        if self.history_level:
            said += f", history noised to {self.history_level:g}"
        if (self.prediction_scale, self.prediction_slope) != (1, 0):
            said += f", prediction x {self.prediction_scale:g}"
        return said + (f" {self.prediction_slope:+g} (t/T - 1/2)" if self.prediction_slope else "")


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """What a person says about sampling; None = as the model was made for."""

    steps: int | None = None
    """Scheduler steps a window."""
    keyframe_stride: int | None = None
    """Every so many frames a keyframe is generated first, then the frames between; a power of two, 1 = one frame after
    the other. For models trained with --system.max-stride."""
    guidance_scale: float | None = None
    """Towards the prompt; 1 = off."""
    image_guidance_scale: float | None = None
    """Towards the image; 1 = off. Both off: a third of the time."""
    guidance_interval: tuple[float, float] | None = None
    """Guidance acts between these shares of the timesteps alone, 0 clean and 1 noise."""
    history_level: float | None = None
    """Guidance towards the image pulls to given frames noised to this share of the timesteps (fractional history
    guidance); 0 = clean ones. For models with a timestep a frame."""
    prediction_scale: float | None = None
    """The model's prediction is multiplied by this, which `calibrate` finds; 1 = as it is."""
    prediction_slope: float | None = None
    """How much larger that factor is at the noisiest timestep than at the cleanest."""

    def __post_init__(self) -> None:
        check_fields(self, {"steps": 1})
        _check_sampler(self)

    def over(self, sampler: Sampler) -> Sampler:
        """These options, and the model's where they are None."""
        own = {name: getattr(self, name) for name in Sampler.__dataclass_fields__}
        return replace(sampler, **{name: value for name, value in own.items() if value is not None})


def _check_sampler(sampler: Sampler | SamplerOptions) -> None:
    finite = ("guidance_scale", "image_guidance_scale")
    check_fields(sampler, {"history_level": 0}, positive=("prediction_scale",), finite=finite)
    stride = sampler.keyframe_stride
    if stride is not None and (stride < 1 or stride & (stride - 1)):
        raise InputError(f"keyframe_stride: expected a power of two (1, 2, 4, ...), got {stride}")
    if sampler.history_level is not None and sampler.history_level >= 1:
        raise InputError(f"history_level: expected below 1, which is no history, got {sampler.history_level}")
    interval = sampler.guidance_interval
    if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
        raise InputError(f"guidance_interval: expected two rising shares of the timesteps, 0 to 1, got {interval}")
    scale, slope = sampler.prediction_scale, sampler.prediction_slope
    if slope is not None and not abs(slope) < 2 * (1 if scale is None else scale):
        raise InputError(f"prediction_slope: expected less than twice the prediction_scale, either way, got {slope}")
