"""Noise schedules: what a diffusers scheduler's config says about x_t, the target, and the way back to x0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from contrastive_i2v.diffusion.prediction import (
    PREDICTION_TYPES,
    flow_coefficients,
    variance_preserving_coefficients,
)
from contrastive_i2v.errors import InputError, one_line

MOST_TIMESTEPS = 1_000_000
"""Of a schedule's table."""
TimestepDistribution = Literal["uniform", "logit-normal"]


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(abar) so that the last timestep is pure noise and the first keeps its value.

        s = sqrt(abar);  s <- (s - s_T) * s_0 / (s_0 - s_T);  abar = s^2

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891),
    algorithm 1. Returns float64 [T]. Training needs v or sample prediction, sampling trailing timesteps.
    """
    root = alphas_cumprod.double().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise level and prediction type, as functions of the timesteps that diffusers' schedulers pass.

    Variance preserving ("epsilon", "v_prediction", "sample"): x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) e with
    integer timesteps 0 <= t < T. "flow": x_t = (1 - s) x0 + s e with float timesteps t = s * T, as
    FlowMatchEulerDiscreteScheduler passes them; its `shift` moves the timesteps, not the noise at one.

    Raises:
        InputError: an unknown prediction type, a table of the wrong form, or epsilon prediction with a
            timestep of zero signal: x0 can't be had from the noise there.
    """

    prediction_type: str
    alphas_cumprod: Tensor | None  # [T] float64, falling; None for flow
    num_train_timesteps: int
    _tables: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(f"prediction_type={self.prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES)}")
        _check_steps(self.num_train_timesteps)
        if self.prediction_type == "flow":
            if self.alphas_cumprod is not None:
                raise InputError("alphas_cumprod was given for prediction_type='flow'; expected None")
            return
        table = self.alphas_cumprod
        if table is None or table.shape != (self.num_train_timesteps,):
            shape = None if table is None else tuple(table.shape)
            raise InputError(f"alphas_cumprod has shape {shape}; expected ({self.num_train_timesteps},)")
        low, high = float(table.min()), float(table.max())
        if low < 0 or high > 1 or math.isnan(low):
            raise InputError(f"alphas_cumprod lies in [{low}, {high}]; expected values between 0 and 1")
        if self.prediction_type == "epsilon" and low == 0:
            raise InputError(
                "prediction_type='epsilon' with a zero terminal SNR: at the last timestep there is no "
                "signal, and x0 can't be recovered from predicted noise; use prediction_type='v_prediction', "
                "or rescale_betas_zero_snr=False"
            )
        object.__setattr__(self, "alphas_cumprod", table.detach().to("cpu", torch.float64))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule of a diffusers `scheduler.config` (DDPM, DDIM, Euler, DPM-Solver, ...; flow matching).

        Reads `beta_schedule` ("linear", "scaled_linear", "squaredcos_cap_v2") or `trained_betas`,
        `rescale_betas_zero_snr` and `prediction_type`, in float64.

        Raises:
            InputError: a config without a noise schedule, one this can't express, or epsilon prediction with
                zero terminal SNR.
        """
        if not isinstance(config, Mapping):
            raise InputError(f"config is a {type(config).__name__}; expected a mapping: pass scheduler.config")
        name = str(config.get("_class_name", "scheduler"))
        steps = read_steps(config)
        prediction_type = str(config.get("prediction_type", "epsilon"))
        # `scheduler.config` names no class until it was saved once; flow matching has a shift and no betas
        has_betas = config.get("beta_schedule") is not None or config.get("trained_betas") is not None
        is_flow_match = name.startswith("FlowMatch") or ("shift" in config and not has_betas)
        if is_flow_match or prediction_type in ("flow", "flow_prediction"):
            if config.get("invert_sigmas"):
                raise InputError(f"invert_sigmas=True in the config of {name}; expected False: sigma 1 is noise")
            return cls("flow", None, steps)
        alphas_cumprod = torch.cumprod(1 - _betas(name, steps, config), dim=0)
        if config.get("rescale_betas_zero_snr"):
            alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
        return cls(prediction_type, alphas_cumprod, steps)

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out), each [B] float32: x0 = c_skip * x_t + c_out * F (prediction.py has the table)."""
        if self.prediction_type == "flow":
            return flow_coefficients(self._sigma(timesteps))
        return self._look_up("c_skip", timesteps), self._look_up("c_out", timesteps)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio [B] float32: abar / (1 - abar); flow: (1 - s)^2 / s^2, infinite at s = 0."""
        if self.prediction_type == "flow":
            sigma = self._sigma(timesteps)
            return ((1 - sigma) / sigma) ** 2
        return self._look_up("snr", timesteps)

    def signal(self, timesteps: Tensor) -> Tensor:
        """Share of x_t's energy that is x0's, [B] float32: the square of x0's factor, abar or (1 - s)^2.

        One for a clean latent, zero for pure noise: the gate of the contrastive terms.
        """
        if self.prediction_type == "flow":
            return (1 - self._sigma(timesteps)) ** 2
        return self._look_up("signal", timesteps)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar) clean + sqrt(1 - abar) noise; flow: (1 - s) clean + s noise. In clean's dtype.

        Timesteps `[B]`, a row each, or `[B, T]`, one a frame of clips `[B, T, *]`.
        """
        keep, mix = self._mixing(timesteps, clean.ndim)
        return (keep * clean + mix * noise).to(clean.dtype)

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What F regresses: noise; sqrt(abar) noise - sqrt(1 - abar) clean; clean; flow: noise - clean."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        if self.prediction_type == "flow":
            return noise - clean
        keep, mix = self._mixing(timesteps, clean.ndim)
        return (keep * noise - mix * clean).to(clean.dtype)

    def sample_timesteps(
        self,
        n: int,
        generator: torch.Generator | None = None,
        device: str | torch.device = "cpu",
        *,
        distribution: TimestepDistribution = "uniform",
        mean: float = 0.0,
        std: float = 1.0,
        shift: float = 1.0,
    ) -> Tensor:
        """[n] training timesteps on `device`: int64 in [0, T), or for flow float32 in (0, T].

            uniform        u ~ U(0, 1]
            logit-normal   u = 1 / (1 + exp(-(mean + std e))), e ~ N(0, 1)
            then           u' = shift u / (1 + (shift - 1) u),  t = u' T (flow), ceil(u' T) - 1 otherwise

        A shift above 1 means noisier timesteps: long or large videos need them, as neighbouring pixels say the same.
        The timesteps are drawn where the generator lives, so a CPU generator gives the same ones for any device.

        Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (arXiv
        2403.03206), section 3.1 and equation 23.
        """
        source = generator.device if generator is not None else torch.device(device)
        is_flow = self.prediction_type == "flow"
        if distribution == "uniform" and shift == 1 and not is_flow:
            return torch.randint(self.num_train_timesteps, (n,), generator=generator, device=source).to(device)
        if distribution == "uniform":
            share = 1 - torch.rand(n, generator=generator, device=source)
        else:
            share = torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=source))
        if shift != 1:
            share = shift * share / (1 + (shift - 1) * share)
        return self.timesteps_at(share).to(device)

    def timesteps_at(self, share: Tensor) -> Tensor:
        """The timesteps at shares u of all, 0 clean and 1 noise: u T (flow), otherwise ceil(u T) - 1, at least 0."""
        time = share * self.num_train_timesteps
        if self.prediction_type == "flow":
            return time
        return (time.ceil().long() - 1).clamp(0, self.num_train_timesteps - 1)

    def _sigma(self, timesteps: Tensor) -> Tensor:
        return timesteps.float() / self.num_train_timesteps

    def _mixing(self, timesteps: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """Factors of clean and noise in x_t, each [B, 1, ...], or [B, T, 1, ...] of timesteps [B, T]."""
        if self.prediction_type == "flow":
            mix = self._sigma(timesteps)
            keep = 1 - mix
        else:
            keep, mix = self._look_up("keep", timesteps), self._look_up("mix", timesteps)
        shape = (*timesteps.shape, *[1] * (ndim - timesteps.ndim))
        return keep.reshape(shape), mix.reshape(shape)

    def _look_up(self, name: str, timesteps: Tensor) -> Tensor:
        if timesteps.is_floating_point():
            raise InputError(
                f"timesteps has dtype {timesteps.dtype}; expected integers for prediction_type="
                f"{self.prediction_type!r}: round them, or use a flow-matching scheduler's config"
            )
        key = (name, timesteps.device)
        if key not in self._tables:
            self._tables[key] = self._table(name).float().to(timesteps.device)
        return self._tables[key][timesteps]

    def _table(self, name: str) -> Tensor:
        """[T] in float64 on the CPU: 1 - abar and the divisions would lose digits in float32."""
        assert self.alphas_cumprod is not None
        abar = self.alphas_cumprod
        if name == "signal":
            return abar
        if name == "snr":
            return abar / (1 - abar)
        if name == "keep":
            return abar.sqrt()
        if name == "mix":
            return (1 - abar).sqrt()
        c_skip, c_out = variance_preserving_coefficients(self.prediction_type, abar)
        return c_skip if name == "c_skip" else c_out


def read_steps(config: Mapping[str, Any]) -> int:
    """num_train_timesteps of a diffusers scheduler's config. Raises InputError for what can't be one."""
    steps = config.get("num_train_timesteps", 1000)
    _check_steps(steps)
    return int(steps)


def _check_steps(steps: object) -> None:
    if isinstance(steps, bool) or not isinstance(steps, (int, float)) or not 1 <= steps <= MOST_TIMESTEPS or steps % 1:
        raise InputError(
            f"num_train_timesteps={str(steps)[:60]}; expected at least 1, whole, at most {MOST_TIMESTEPS}: diffusers' "
            "schedulers have 1000"
        )


def _betas(name: str, steps: int, config: Mapping[str, Any]) -> Tensor:
    """[T] float64, by the formulas diffusers uses in float32."""
    trained = config.get("trained_betas")
    try:
        if trained is not None:
            return torch.as_tensor(trained, dtype=torch.float64)
        start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        if not (0 <= start < 1 and 0 <= end < 1):
            raise ValueError(f"{start:g} and {end:g} are not between 0 and 1")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"trained_betas, beta_start or beta_end in the config of {name}: {one_line(error)}; expected numbers from "
            "0 to below 1"
        ) from error
    schedule = config.get("beta_schedule")
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2
    if schedule == "squaredcos_cap_v2":
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        alphas_cumprod = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)
    raise InputError(
        f"beta_schedule={schedule!r} in the config of {name}; expected linear, "
        "scaled_linear, squaredcos_cap_v2, trained_betas, or a FlowMatch scheduler: pass the config of DDPM, "
        "DDIM, Euler or DPM-Solver"
    )
