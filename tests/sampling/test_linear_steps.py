"""Linear steps against diffusers: whole rollouts at fixed predictions, and who has no such form."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from toy import Toy

from contrastive_i2v.randomness import frame_generator
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import linear_steps, rollout, three_way_guidance
from contrastive_i2v.system import Condition, System

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DDIM = {**NOISE, "clip_sample": False}
SHAPE = (4, 6, 5)
GUIDANCE = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}

LINEAR = [
    diffusers.DDIMScheduler(**DDIM),
    diffusers.DDIMScheduler(**DDIM, set_alpha_to_one=False, steps_offset=1),
    diffusers.DDIMScheduler(**DDIM, timestep_spacing="linspace", prediction_type="sample"),
    diffusers.DDIMScheduler(**DDIM, timestep_spacing="trailing", prediction_type="v_prediction"),
    diffusers.DDIMScheduler(
        **DDIM, timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True
    ),
    diffusers.EulerDiscreteScheduler(**NOISE),
    diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
    diffusers.EulerDiscreteScheduler(**NOISE, use_karras_sigmas=True, prediction_type="v_prediction"),
    diffusers.EulerDiscreteScheduler(
        **NOISE, prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    ),
    diffusers.EulerDiscreteScheduler(**NOISE, prediction_type="sample", interpolation_type="log_linear"),
    diffusers.EulerDiscreteScheduler(**NOISE, final_sigmas_type="sigma_min"),
    diffusers.FlowMatchEulerDiscreteScheduler(),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True),
]


class Recorded(nn.Module):
    """A network whose predictions are given; keeps what it was asked."""

    def __init__(self, predictions: Tensor) -> None:
        super().__init__()
        self.predictions = predictions  # [steps, 3B, C, h, w]
        self.inputs: list[Tensor] = []
        self.timesteps: list[Tensor] = []

    def forward(self, noisy: Tensor, timesteps: Tensor, **condition: Tensor) -> Tensor:
        self.inputs.append(noisy[:, 0])
        self.timesteps.append(timesteps)
        return self.predictions[len(self.inputs) - 1][:, None]


class Fixed(Toy):
    """A system of one generated frame whose predictions are given, and whose noise is independent."""

    noise = System.noise

    def __init__(self, predictions: Tensor) -> None:
        super().__init__()
        self.network = Recorded(predictions)  # type: ignore[assignment]

    def condition(self, given: Tensor, text: Condition, **more: object) -> Condition:
        return {"given": given, "prompt_embeds": text["prompt_embeds"]}


def draw(steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Predictions of three branches that are alike, [steps, 3 * 2, *SHAPE]."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(steps, 1, 2, *SHAPE, generator=generator)
    return (common + 0.05 * torch.randn(steps, 3, 2, *SHAPE, generator=generator)).flatten(1, 2).to(dtype)


SCALED = {"prediction_scale": 1.06, "prediction_slope": -0.08}
PLAIN = {"prediction_scale": 1.0, "prediction_slope": 0.0}


def scale_at(timestep: Tensor, scaled: dict[str, float]) -> float:
    return scaled["prediction_scale"] + scaled["prediction_slope"] * (float(timestep) / 1000 - 0.5)


def ours(scheduler: Any, predictions: Tensor, scaled: dict[str, float] = PLAIN) -> tuple[Tensor, Recorded]:
    system = Fixed(predictions)
    video = rollout(
        system,
        torch.zeros(2, *SHAPE),
        {"prompt_embeds": torch.zeros(2, 3, 2)},
        frames=2,
        scheduler=scheduler,
        sampler=Sampler(steps=len(predictions), **GUIDANCE, **scaled),  # type: ignore[arg-type]
        seeds=[3, 4],
    )
    return video[:, 1], system.network  # type: ignore[return-value]


def noise() -> Tensor:
    return torch.stack([torch.randn(SHAPE, generator=frame_generator(seed, 1)) for seed in (3, 4)])


def by_diffusers(
    scheduler: Any, predictions: Tensor, scaled: dict[str, float] = PLAIN
) -> tuple[Tensor, list[Tensor], Tensor]:
    """(latents, model inputs, timesteps), guidance and scheduler.step in float32."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(len(predictions))
    latents = noise() * getattr(scheduler, "init_noise_sigma", 1.0)
    inputs = []
    for timestep, prediction in zip(scheduler.timesteps, predictions, strict=True):
        scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
        inputs.append(scale(latents, timestep))
        full, image, uncond = prediction.float().chunk(3)
        guided = three_way_guidance(uncond, image, full, *GUIDANCE.values()) * scale_at(timestep, scaled)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    return latents, inputs, scheduler.timesteps


def in_float64(scheduler: Any, predictions: Tensor, scaled: dict[str, float] = PLAIN) -> tuple[Tensor, list[Tensor]]:
    """(latents, model inputs) from the same tables, as the papers write it: predict x0, then move towards it."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(len(predictions))
    kind = scheduler.config.get("prediction_type")
    x = noise().double() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    inputs = []
    for i, prediction in enumerate(predictions.double()):
        full, image, uncond = prediction.chunk(3)
        e = three_way_guidance(uncond, image, full, *GUIDANCE.values()) * scale_at(scheduler.timesteps[i], scaled)
        if isinstance(scheduler, diffusers.DDIMScheduler):
            t = int(scheduler.timesteps[i])
            before = t - scheduler.config.num_train_timesteps // len(predictions)
            abar = float(scheduler.alphas_cumprod[t])
            abar_before = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
            if kind == "epsilon":
                x0 = (x - (1 - abar) ** 0.5 * e) / abar**0.5
            else:
                x0 = e if kind == "sample" else abar**0.5 * x - (1 - abar) ** 0.5 * e
            inputs.append(x)
            x = abar_before**0.5 * x0 + (1 - abar_before) ** 0.5 * (x - abar**0.5 * x0) / (1 - abar) ** 0.5
            continue
        sigma, after = float(scheduler.sigmas[i]), float(scheduler.sigmas[i + 1])
        is_flow = isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
        inputs.append(x if is_flow else x / (sigma**2 + 1) ** 0.5)
        if is_flow or kind == "epsilon":
            slope = e
        else:
            x0 = e if kind == "sample" else x / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * e
            slope = (x - x0) / sigma
        x = x + (after - sigma) * slope
    return x, inputs


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("scheduler", LINEAR, ids=lambda scheduler: type(scheduler).__name__)
@pytest.mark.parametrize("scaled", [PLAIN, SCALED], ids=["plain", "scaled"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_rollout_is_diffusers_to_rounding(scheduler: Any, steps: int, scaled: dict[str, float]) -> None:
    predictions = draw(steps)
    latents, denoiser = ours(scheduler, predictions, scaled)
    expected, inputs, timesteps = by_diffusers(scheduler, predictions, scaled)
    truth, true_inputs = in_float64(scheduler, predictions, scaled)
    assert latents.dtype == torch.float32
    for value, theirs, exact in zip(
        (latents, *(one.chunk(3)[0] for one in denoiser.inputs)),
        (expected, *inputs),
        (truth, *true_inputs),
        strict=True,
    ):
        assert error(value, exact) <= error(theirs, exact) + torch.finfo(torch.float32).eps
    for noisy, timestep, timestep_asked in zip(denoiser.inputs, timesteps, denoiser.timesteps, strict=True):
        assert torch.equal(noisy, noisy[:2].repeat(3, 1, 1, 1))
        assert torch.equal(timestep_asked, timestep.expand(6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_guidance_of_low_precision_predictions_is_float32(dtype: torch.dtype) -> None:
    predictions = draw(50, dtype)
    truth, _ = in_float64(LINEAR[0], predictions)
    assert error(ours(LINEAR[0], predictions)[0], truth) < 5e-7


class Subclass(diffusers.DDIMScheduler):
    """May have its own step."""


OTHERS = [
    diffusers.DDIMScheduler(**NOISE),  # clips
    diffusers.DDIMScheduler(**DDIM, thresholding=True),
    Subclass(**DDIM),
    diffusers.DDPMScheduler(**DDIM),
    diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True),
    diffusers.DPMSolverMultistepScheduler(**NOISE),
    diffusers.EulerAncestralDiscreteScheduler(**NOISE),
    diffusers.HeunDiscreteScheduler(**NOISE),
    diffusers.LCMScheduler(**NOISE),
    diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    # no signal at the first timestep: the noise says nothing about x0 there
    diffusers.DDIMScheduler(**DDIM, rescale_betas_zero_snr=True, timestep_spacing="trailing"),
]


@pytest.mark.parametrize("scheduler", OTHERS, ids=lambda scheduler: type(scheduler).__name__)
def test_other_schedulers_have_no_linear_steps(scheduler: Any) -> None:
    assert linear_steps(scheduler, 5) is None


@pytest.mark.parametrize("scheduler", [Subclass(**DDIM), diffusers.DPMSolverMultistepScheduler(**NOISE)])
def test_other_schedulers_scale_the_prediction_too(scheduler: Any) -> None:
    predictions = draw(6)
    expected = by_diffusers(scheduler, predictions, SCALED)[0]
    torch.testing.assert_close(ours(scheduler, predictions, SCALED)[0], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours(scheduler, predictions)[0], expected, rtol=1e-2)


def test_the_truth_of_a_point_needs_no_scale() -> None:
    # all data is one point x0: the noise prediction (x - alpha x0) / sigma is exact, and so is any number of steps
    system = Fixed(torch.zeros(1))
    table = diffusers.DDIMScheduler(**DDIM).alphas_cumprod.double()
    point = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))

    class Exact(nn.Module):
        def forward(self, noisy: Tensor, timesteps: Tensor, **condition: Tensor) -> Tensor:
            abar = table[timesteps.long()].view(-1, 1, 1, 1, 1)
            return ((noisy - abar.sqrt() * point) / (1 - abar).sqrt()).float()

    system.network = Exact()  # type: ignore[assignment]
    errors = {}
    for scale in (0.98, 1.0, 1.02):
        sampler = Sampler(steps=5, guidance_scale=1, image_guidance_scale=1, prediction_scale=scale)
        text = {"prompt_embeds": torch.zeros(1, 3, 2)}
        video = rollout(
            system,
            torch.zeros(1, *SHAPE),
            text,
            frames=2,
            seeds=[0],
            sampler=sampler,
            scheduler=diffusers.DDIMScheduler(**DDIM),
        )
        errors[scale] = float((video[:, 1] - point).square().mean())
    assert errors[1.0] < 1e-4 * min(errors[0.98], errors[1.02])


@pytest.mark.parametrize("kind", [diffusers.DDIMScheduler, Subclass])
def test_guidance_acts_in_its_interval_alone(kind: Any) -> None:
    class Rows(nn.Module):
        """Says which rows it was asked for, and predicts something else for each branch."""

        asked: list[int] = []

        def forward(self, noisy: Tensor, timesteps: Tensor, **condition: Tensor) -> Tensor:
            self.asked.append(len(noisy))
            return (
                0.1 * noisy + condition["prompt_embeds"].mean() + 0.01 * torch.arange(len(noisy)).view(-1, 1, 1, 1, 1)
            )

    def sample(**more: Any) -> tuple[Tensor, list[int]]:
        system = Fixed(torch.zeros(1))
        system.network = Rows()  # type: ignore[assignment]
        Rows.asked.clear()
        video = rollout(
            system,
            torch.zeros(2, *SHAPE),
            {"prompt_embeds": torch.zeros(2, 3, 2)},
            frames=2,
            scheduler=kind(**DDIM),
            sampler=Sampler(steps=5, **GUIDANCE, **more),
            seeds=[3, 4],
        )
        return video[:, 1], list(Rows.asked)

    whole, asked = sample()
    assert asked == [6] * 5
    part, asked = sample(guidance_interval=(0.15, 0.65))  # DDIM's timesteps are 800, 600, 400, 200 and 0
    assert asked == [2, 6, 6, 6, 2] and not torch.allclose(part, whole)
    off, asked = sample(guidance_interval=(0.9, 1.0))
    assert asked == [2] * 5
    by_hand = noise()
    steps = diffusers.DDIMScheduler(**DDIM)
    steps.set_timesteps(5)
    for timestep in steps.timesteps:
        prediction = 0.1 * by_hand + 0.01 * torch.arange(2).view(-1, 1, 1, 1)
        by_hand = steps.step(prediction, timestep, by_hand, return_dict=False)[0]
    torch.testing.assert_close(off, by_hand, rtol=1e-5, atol=1e-5)


def test_a_linear_step_costs_no_call_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("scheduler.step was called")

    for scheduler in (LINEAR[0], LINEAR[5], LINEAR[-1]):
        monkeypatch.setattr(type(scheduler), "step", step)
        before = copy.deepcopy(scheduler.__dict__)
        assert ours(scheduler, draw(4))[0].isfinite().all()
        assert scheduler.__dict__.keys() == before.keys()
        assert torch.equal(scheduler.timesteps, before["timesteps"])


def test_neighbouring_steps_of_euler_and_ddim_agree() -> None:
    # The two are one update on one path, so in the model's input they differ only by the tables they read.
    euler = diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1)
    ddim = diffusers.DDIMScheduler(**DDIM, steps_offset=1)
    one, other = linear_steps(euler, 50), linear_steps(ddim, 50)
    assert one is not None
    assert other is not None
    assert torch.equal(one.timesteps, other.timesteps.float())
    for pair in itertools.islice(zip(one.scales, other.scales, strict=True), 49):
        torch.testing.assert_close(*(torch.tensor(scales) for scales in pair), rtol=1e-5, atol=1e-6)
    assert abs(one.noise_scale - 1) < 1e-6
