"""Rollouts against diffusers' pipeline, and the properties that make them usable."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import InstructPix2Pix
from contrastive_i2v.sampling import frame_generator, frame_noise, rollout

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROMPTS = ["a red ball rolls to the left", "make it snow"]


@pytest.fixture(scope="module")
def latents(model: InstructPix2Pix) -> Tensor:
    torch.manual_seed(0)
    return model.encode_images(torch.rand(2, 3, 16, 16) * 2 - 1)[:, :4]


def _rollout(model: InstructPix2Pix, first_latent: Tensor, prompts: list[str], **kwargs: Any) -> Tensor:
    settings = {"scheduler": model.scheduler, "steps": 3, "seeds": list(range(len(prompts)))}
    return rollout(
        model.denoiser,
        first_latent,
        model.encode_prompts(prompts),
        model.encode_prompts([""]),
        scaling_factor=model.scaling_factor,
        **{**settings, **kwargs},
    )


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
        ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
        ("EulerDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
    ],
)
def test_one_frame_is_the_diffusers_pipeline(
    model: InstructPix2Pix,
    latents: Tensor,
    build_pipeline: Callable[..., Any],
    name: str,
    kwargs: dict[str, Any],
) -> None:
    scheduler = getattr(diffusers, name)(**NOISE, **kwargs)
    pipeline = build_pipeline()
    pipeline.scheduler = copy.deepcopy(scheduler)
    noise = torch.stack([frame_noise(seed, 1, (4, 8, 8)) for seed in (5, 6)])
    expected = pipeline(
        prompt=PROMPTS,
        image=latents,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=6.0,
        image_guidance_scale=1.6,
        output_type="latent",
    ).images

    video = _rollout(
        model,
        latents,
        PROMPTS,
        frames=2,
        scheduler=scheduler,
        steps=4,
        seeds=[5, 6],
        guidance_scale=6.0,
        image_guidance_scale=1.6,
    )
    assert video.shape == (2, 2, 4, 8, 8)
    torch.testing.assert_close(video[:, 0], latents * 0.5)
    torch.testing.assert_close(video[:, 1], expected, rtol=1e-4, atol=1e-4)


def test_the_second_frame_starts_from_the_unscaled_first(model: InstructPix2Pix, latents: Tensor) -> None:
    video = _rollout(model, latents, PROMPTS, frames=3)
    seen: list[Tensor] = []

    def watch(noisy: Tensor, timesteps: Tensor, image_latents: Tensor, prompt_embeds: Tensor) -> Tensor:
        seen.append(image_latents)
        return model.denoiser(noisy, timesteps, image_latents, prompt_embeds)

    embeds, null = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    rollout(
        watch,
        latents,
        embeds,
        null,
        frames=3,
        scheduler=model.scheduler,
        steps=3,
        scaling_factor=0.5,
        seeds=[0, 1],
    )
    assert len(seen) == 6
    torch.testing.assert_close(seen[0], torch.cat([latents, latents, torch.zeros_like(latents)]))
    condition = video[:, 1] / 0.5
    torch.testing.assert_close(seen[3], torch.cat([condition, condition, torch.zeros_like(latents)]))


STOCHASTIC_OR_NOT = [
    diffusers.DDIMScheduler(**NOISE, clip_sample=False),
    diffusers.EulerDiscreteScheduler(**NOISE),
    diffusers.EulerAncestralDiscreteScheduler(**NOISE),
    diffusers.DDPMScheduler(**NOISE, clip_sample=False),
    diffusers.DPMSolverMultistepScheduler(**NOISE, algorithm_type="sde-dpmsolver++"),
    diffusers.LCMScheduler(**NOISE),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
    diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
]


@pytest.mark.parametrize("scheduler", STOCHASTIC_OR_NOT, ids=lambda scheduler: type(scheduler).__name__)
def test_alone_or_in_a_batch_and_short_or_long(model: InstructPix2Pix, latents: Tensor, scheduler: Any) -> None:
    before = copy.deepcopy(scheduler.__dict__)
    together = _rollout(model, latents, PROMPTS, frames=3, scheduler=scheduler, seeds=[7, 8])
    alone = _rollout(model, latents[1:], PROMPTS[1:], frames=3, scheduler=scheduler, seeds=[8])
    shorter = _rollout(model, latents, PROMPTS, frames=2, scheduler=scheduler, seeds=[7, 8])

    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shorter, together[:, :2], rtol=0, atol=0)
    assert (together[:, 1] - together[:, 2]).abs().max() > 1e-2
    assert scheduler.__dict__.keys() == before.keys() and torch.equal(scheduler.timesteps, before["timesteps"])


def test_stochastic_schedulers_draw_from_the_seeds(model: InstructPix2Pix, latents: Tensor) -> None:
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**NOISE)
    torch.manual_seed(1)
    first = _rollout(model, latents, PROMPTS, frames=2, scheduler=scheduler)
    torch.manual_seed(2)
    again = _rollout(model, latents, PROMPTS, frames=2, scheduler=scheduler)
    other = _rollout(model, latents, PROMPTS, frames=2, scheduler=scheduler, seeds=[0, 99])
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first[0], other[0], rtol=1e-4, atol=1e-4)
    assert (first[1, 1] - other[1, 1]).abs().max() > 1e-2


def test_noise_differs_for_every_seed_and_frame() -> None:
    draws = [frame_noise(seed, frame, (64,)) for seed in range(4) for frame in range(4)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 16
    pairs = ((0, 1), (1, 0), (0, 2))
    correlation = torch.corrcoef(torch.stack([frame_noise(*pair, (4096,)) for pair in pairs]))
    assert (correlation - torch.eye(3)).abs().max() < 0.08
    assert torch.equal(frame_noise(3, 2, (5,)), torch.randn(5, generator=frame_generator(3, 2)))


def test_guidance_off_costs_one_forward_a_sample(model: InstructPix2Pix, latents: Tensor) -> None:
    sizes: list[int] = []

    def count(noisy: Tensor, *rest: Tensor) -> Tensor:
        sizes.append(len(noisy))
        return noisy

    embeds, null = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    for scale, image_scale in ((1.0, 1.0), (7.5, 1.5)):
        rollout(
            count,
            latents,
            embeds,
            null,
            frames=2,
            scheduler=model.scheduler,
            steps=2,
            scaling_factor=0.5,
            seeds=[0, 1],
            guidance_scale=scale,
            image_guidance_scale=image_scale,
        )
    assert sizes == [2, 2, 6, 6]


def test_callback_sees_every_generated_frame(model: InstructPix2Pix, latents: Tensor) -> None:
    seen: list[tuple[int, Tensor]] = []
    video = _rollout(model, latents, PROMPTS, frames=3, callback=lambda frame, z: seen.append((frame, z)))
    assert [frame for frame, _ in seen] == [1, 2]
    torch.testing.assert_close(torch.stack([z for _, z in seen], dim=1), video[:, 1:])
    assert _rollout(model, latents, PROMPTS, frames=1).shape == (2, 1, 4, 8, 8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"frames": 0}, "frames=0; expected at least 1"),
        ({"steps": 0}, "steps=0; expected between 1 and 1000"),
        ({"steps": 2000}, "steps=2000; expected between 1 and 1000"),
        ({"seeds": [1]}, "seeds has 1 entries; expected one for each of the 2"),
        (
            {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)},
            "use_dynamic_shifting=False",
        ),
    ],
)
def test_bad_arguments(model: InstructPix2Pix, latents: Tensor, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _rollout(model, latents, PROMPTS, **{"frames": 2, **kwargs})
    with pytest.raises(InputError, match="prompt_embeds has shape"):
        _rollout(model, latents, PROMPTS[:1], frames=2, seeds=[0, 1])
