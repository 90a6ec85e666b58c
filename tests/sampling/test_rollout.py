"""Rollouts against diffusers' pipeline and window by window, and the properties that make them usable."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from toy import BlockMeans, Toy

from contrastive_i2v.errors import InputError
from contrastive_i2v.models.instruct_pix2pix import InstructPix2Pix
from contrastive_i2v.randomness import draw, frame_generator
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import roll_windows, rollout, three_way_guidance
from contrastive_i2v.system import Window

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROMPTS = ["a red ball rolls to the left", "make it snow"]
STEPS = Sampler(steps=3)


@pytest.fixture(scope="module")
def latents(model: InstructPix2Pix) -> Tensor:
    torch.manual_seed(0)
    return model.codec.sample(model.codec.encode(torch.rand(2, 1, 3, 16, 16) * 2 - 1))[:, 0]


def _rollout(system: Any, first: Tensor, prompts: list[str], *, sampler: Sampler = STEPS, **kwargs: Any) -> Tensor:
    settings = {"seeds": list(range(len(prompts))), "sampler": sampler}
    return rollout(system, first, system.encode_text(prompts), **{**settings, **kwargs})


@pytest.fixture
def watched(model: InstructPix2Pix, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What the model's network is asked from here on."""
    asked: list[dict[str, Tensor]] = []
    network = model.network

    class Watched(nn.Module):
        def forward(self, noisy: Tensor, timesteps: Tensor, **condition: Tensor) -> Tensor:
            asked.append({"noisy": noisy, "timesteps": timesteps, **condition})
            prediction: Tensor = network(noisy, timesteps, **condition)
            return prediction

    monkeypatch.setattr(model, "network", Watched())
    return asked


def frame_noise(seed: int, frame: int, shape: tuple[int, ...]) -> Tensor:
    return draw((1, *shape), [frame_generator(seed, frame)])[0]


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
        sampler=Sampler(steps=4, guidance_scale=6.0, image_guidance_scale=1.6),
        seeds=[5, 6],
    )
    assert video.shape == (2, 2, 4, 8, 8)
    torch.testing.assert_close(video[:, 0], latents * 0.5)
    torch.testing.assert_close(video[:, 1], expected, rtol=1e-4, atol=1e-4)


def test_the_second_frame_starts_from_the_unscaled_first(
    model: InstructPix2Pix, latents: Tensor, watched: list[dict[str, Tensor]]
) -> None:
    video = _rollout(model, latents, PROMPTS, frames=3)
    seen = [asked["image_latents"] for asked in watched]
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


def test_guidance_off_costs_one_forward_a_sample(
    model: InstructPix2Pix, latents: Tensor, watched: list[dict[str, Tensor]]
) -> None:
    for scale, image_scale in ((1.0, 1.0), (7.5, 1.5)):
        sampler = Sampler(steps=2, guidance_scale=scale, image_guidance_scale=image_scale)
        _rollout(model, latents, PROMPTS, frames=2, sampler=sampler)
    assert [len(asked["noisy"]) for asked in watched] == [2, 2, 6, 6]


def test_callback_sees_every_generated_frame(model: InstructPix2Pix, latents: Tensor) -> None:
    seen: list[tuple[int, Tensor]] = []
    video = _rollout(model, latents, PROMPTS, frames=3, callback=lambda frame, z: seen.append((frame, z)))
    assert [frame for frame, _ in seen] == [1, 2]
    torch.testing.assert_close(torch.cat([z for _, z in seen], dim=1), video[:, 1:])
    assert _rollout(model, latents, PROMPTS, frames=1).shape == (2, 1, 4, 8, 8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"frames": 0}, "frames=0; expected at least 1"),
        ({"sampler": Sampler(steps=0)}, "steps=0; expected between 1 and 1000"),
        ({"sampler": Sampler(steps=2000)}, "steps=2000; expected between 1 and 1000"),
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
    with pytest.raises(InputError, match=r"first has shape \(2, 1, 4, 8, 8\); expected \[B, C, h, w\]"):
        _rollout(model, latents[:, None], PROMPTS, frames=2)


def test_a_systems_own_sampler_and_scheduler_are_used_unless_somebody_says_otherwise() -> None:
    system = Toy()
    first, kwargs = torch.rand(2, 3, 2, 2), {"frames": 3, "seeds": [0, 1]}
    text = system.encode_text(PROMPTS)
    usual = rollout(system, first, text, **kwargs)
    assert torch.equal(usual, rollout(system, first, text, sampler=system.sampler, **kwargs))
    assert torch.equal(usual, rollout(system, first, text, scheduler=system.scheduler, **kwargs))
    assert not torch.allclose(usual, rollout(system, first, text, sampler=Sampler(steps=7), **kwargs))
    scheduler = diffusers.DDIMScheduler(**NOISE, clip_sample=False, prediction_type="v_prediction")
    assert not torch.allclose(usual, rollout(system, first, text, scheduler=scheduler, **kwargs))


WINDOWS = [
    Window(4),
    Window(4, given=(0, 1, 2)),
    Window(2, anchor=True),
    Window(5, given=(0, 1), anchor=True),
]
SCHEDULERS = [diffusers.DDIMScheduler(**NOISE, clip_sample=False), diffusers.DPMSolverMultistepScheduler(**NOISE)]


def _first(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: type(scheduler).__name__)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_rollout_is_one_window_after_another(window: Window, scheduler: Any) -> None:
    """Written again, plainly: what each window is given, its noise, three network calls a step, diffusers' own step."""
    system = Toy(window)
    first, seeds, frames = _first(), [11, 12], 9
    text = system.encode_text(PROMPTS)
    told: list[tuple[int, Tensor]] = []
    video = rollout(
        system,
        first,
        text,
        frames=frames,
        seeds=seeds,
        scheduler=scheduler,
        callback=lambda frame, z: told.append((frame, z)),
    )
    asked, system.told = system.told, []

    expected = [first * 0.5]  # normalised
    windows = []
    while len(expected) < frames:
        start = len(expected)
        before = [start - age for age in range(len(window.given), 0, -1)]
        shown = [0] * window.anchor + [max(frame, 0) for frame in before]
        given = torch.stack([expected[frame] / 0.5 for frame in shown], dim=1)
        was = asked[len(windows)]
        torch.testing.assert_close(was["given"], given, rtol=1e-5, atol=1e-5)
        present = [True] * window.anchor + [frame >= 0 for frame in before]
        assert was["present"].dtype == torch.bool and was["present"].tolist() == [present] * 2
        assert was["fps"] is None

        made = len(window.generated)
        generators = [frame_generator(seed, start) for seed in seeds]
        noise = system.noise((2, made, 3, 2, 2), generators, given=given, sampling=True)
        by_step = copy.deepcopy(scheduler)
        by_step.set_timesteps(3)
        z = noise * by_step.init_noise_sigma
        embeds = text["prompt_embeds"] / 100
        for step in by_step.timesteps:
            noisy = by_step.scale_model_input(z, step)
            predictions = [
                system.network(noisy, step.expand(2), given=image, prompt_embeds=words).detach()
                for image, words in (
                    (torch.zeros_like(given), torch.zeros_like(embeds)),
                    (given, torch.zeros_like(embeds)),
                    (given, embeds),
                )
            ]
            z = by_step.step(three_way_guidance(*predictions, 2.0, 1.5), step, z, return_dict=False)[0]
        windows.append((start, z))
        expected += list(z.unbind(1))[: frames - start]

    assert video.shape == (2, frames, 3, 2, 2) and video.dtype == torch.float32
    torch.testing.assert_close(video, torch.stack(expected, dim=1), rtol=1e-4, atol=1e-4)
    assert len(asked) == len(told) == len(windows) == -(-(frames - 1) // len(window.generated))
    for (frame, z), (start, truth) in zip(told, windows, strict=True):
        assert frame == min(start + len(window.generated), frames) - 1
        torch.testing.assert_close(z, truth[:, : frames - start], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_alone_or_in_a_batch_and_short_or_long(window: Window) -> None:
    system, first = Toy(window), _first()
    together = _rollout(system, first, PROMPTS, frames=11, seeds=[7, 8])
    alone = _rollout(system, first[1:], PROMPTS[1:], frames=11, seeds=[8])
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-4)
    for frames in range(1, 11):
        shorter = _rollout(system, first, PROMPTS, frames=frames, seeds=[7, 8])
        torch.testing.assert_close(shorter, together[:, :frames], rtol=0, atol=0)
    assert (together[:, 1:] - together[:, :-1]).abs().amax((0, 2, 3, 4)).min() > 1e-2
    other = _rollout(system, first, PROMPTS, frames=11, seeds=[7, 99])
    torch.testing.assert_close(other[0], together[0], rtol=1e-4, atol=1e-4)
    assert (other[1, 1:] - together[1, 1:]).abs().amax((1, 2, 3)).min() > 1e-2


def test_past_frames_before_the_first_are_marked_and_the_anchor_stays() -> None:
    system, first = Toy(Window(4, given=(0, 1, 2), anchor=True)), _first()
    video = _rollout(system, first, PROMPTS, frames=6) / 0.5
    assert [told["present"][0].tolist() for told in system.told] == [
        [True, False, False, True],
        [True, False, True, True],
        [True, True, True, True],
        [True, True, True, True],
        [True, True, True, True],
    ]
    shown = [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4]]
    for told, frames in zip(system.told, shown, strict=True):
        torch.testing.assert_close(told["given"], video[:, frames])
        assert torch.equal(told["given"][:, 0], first)


def test_the_rate_reaches_the_condition() -> None:
    system = Toy(Window(4))
    _rollout(system, _first(), PROMPTS, frames=6, fps=8.0)
    assert [told["fps"].tolist() for told in system.told] == [[8.0, 8.0]] * 2
    assert all("noise_level" not in told or told["noise_level"] is None for told in system.told)


def test_a_systems_own_noise_starts_its_windows() -> None:
    class Silent(Toy):
        def noise(self, shape: Any, generator: Any, *, given: Tensor, sampling: bool, **_: Any) -> Tensor:
            assert tuple(shape) == (2, 3, 3, 2, 2) and sampling and given.shape == (2, 1, 3, 2, 2)
            return torch.zeros(*shape)

    silent, first = Silent(Window(4)), _first()
    once = _rollout(silent, first, PROMPTS, frames=7, seeds=[1, 2])
    again = _rollout(silent, first, PROMPTS, frames=7, seeds=[3, 4])
    assert torch.equal(once, again)
    usual = _rollout(Toy(Window(4)), first, PROMPTS, frames=7, seeds=[1, 2])
    assert (once - usual)[:, 1:].abs().amax((0, 2, 3, 4)).min() > 1e-2


@pytest.mark.parametrize("window", [Window(5, given=(0, 4)), Window(5, given=()), Window(5, given=(2,))], ids=str)
def test_windows_that_can_not_follow_each_other_are_refused(window: Window) -> None:
    message = f"the windows of toy give frames {window.given} of 5, so none can follow another; expected a system whose"
    with pytest.raises(InputError, match=re.escape(message)):
        _rollout(Toy(window), _first(), PROMPTS, frames=3)


def test_a_codec_that_compresses_time_rolls_out_latents() -> None:
    system = Toy(Window(3), BlockMeans(2))
    own = system.codec.sample(system.codec.encode(torch.rand(2, 1, 3, 16, 16)))[:, 0]
    latents = _rollout(system, own, PROMPTS, frames=4)
    assert latents.shape == (2, 4, 3, 2, 2) and system.codec.decode(latents).shape == (2, 7, 3, 16, 16)


@pytest.mark.parametrize(
    "window",
    [
        Window(2),
        Window(4, given=(0, 1, 2), anchor=True),
        Window(5, given=(0, 1), anchor=True),
        Window(4, regenerates=True),
    ],
)
def test_windows_from_a_still_frame_are_a_rollout(window: Window) -> None:
    """Given the first frame in every place, and told that those before it are missing."""
    system, new = Toy(window), window.length - window.past
    first, text = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(3)), system.encode_text(PROMPTS)
    missing = torch.arange(1 - window.past, 1) >= 0
    present = torch.cat([torch.ones(int(window.anchor), dtype=torch.bool), missing]).expand(2, -1)
    given = first[:, None].expand(-1, window.past + window.anchor, -1, -1, -1)
    fps = torch.tensor([5.0, 5.0])
    # a rollout's windows begin at frame 1, those of a window in training at its own first new frame
    seeds = {"seeds": [5, 6], "sampler": Sampler(steps=3)}
    rolled = roll_windows(system, given, text, windows=3, present=present, fps=fps, **seeds)
    told = [dict(one) for one in system.told]
    for number, (one, said) in enumerate(zip(rolled, told, strict=True)):
        assert torch.equal(one.given, said["given"]) and torch.equal(said["fps"], fps)
        shown = number * new + torch.arange(1 - window.past, 1) >= 0
        assert torch.equal(said["present"][:, window.anchor :], shown.expand(2, -1))
        assert bool(said["present"][:, : window.anchor].all())
    video = [first]
    for number, one in enumerate(rolled):
        past = [video[max(place, 0)] for place in range(number * new + 1 - window.past, number * new + 1)]
        assert torch.equal(one.given, torch.stack([first] * window.anchor + past, dim=1))
        video += system.codec.denormalize(one.generated)[:, -new:].unbind(1)
    assert [len(one.generated[0]) for one in rolled] == [len(window.generated)] * 3
    if window.past == 1:  # then the noise is the same, too
        again = rollout(system, first, text, frames=3 * new + 1, **seeds)
        torch.testing.assert_close(system.codec.denormalize(again[:, 1:]), torch.stack(video[1:], dim=1))


def test_windows_that_cannot_follow_each_other_are_one() -> None:
    system = Toy(Window(4, given=(1, 3)))
    given, text = torch.zeros(2, 2, 3, 2, 2), system.encode_text(PROMPTS)
    with pytest.raises(InputError, match="windows=2: those of toy can't follow each other; expected 1"):
        roll_windows(system, given, text, windows=2, seeds=[1, 2])
    (one,) = roll_windows(system, given, text, windows=1, seeds=[1, 2])
    assert torch.equal(one.given, given) and one.generated.shape == (2, 2, 3, 2, 2)
