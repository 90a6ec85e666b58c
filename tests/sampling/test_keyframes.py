"""Keyframes first, then the frames halfway between: against a loop written out by hand, and what makes it usable."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2Pix, InstructPix2PixConfig
from contrastive_i2v.randomness import draw, frame_generator
from contrastive_i2v.sampler import Sampler, SamplerOptions
from contrastive_i2v.sampling import roll_windows, rollout

module = import_module("contrastive_i2v.sampling.rollout")
PROMPTS = ["a red star moves up quickly over stripes", "a blue ring moves down slowly over clouds"]
KEYED = Sampler(steps=2, guidance_scale=1.0, image_guidance_scale=1.0, keyframe_stride=4)


def trained(**options: Any) -> InstructPix2Pix:
    """The tiny model, every input of it with a say, as training would give them."""
    system = load_system("tiny", InstructPix2PixConfig(max_stride=4, **options))
    assert isinstance(system, InstructPix2Pix)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (system.unet.conv_in.weight, system.unet.class_embedding.linear_2.weight):
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return system


@pytest.fixture(scope="module")
def system() -> InstructPix2Pix:
    return trained()


@pytest.fixture(scope="module")
def first() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def roll(system: InstructPix2Pix, first: Tensor, frames: int, sampler: Sampler = KEYED, **more: Any) -> Tensor:
    settings = {"seeds": [3, 7], "sampler": sampler, **more}
    return rollout(system, first, system.encode_text(PROMPTS[: len(first)]), frames=frames, **settings)


def by_hand(
    system: InstructPix2Pix, first: Tensor, order: list[tuple[int, int, int | None]], seeds: tuple[int, int] = (3, 7)
) -> dict[int, Tensor]:
    """Frames of time k from (k, past, ahead), by the scheduler's own steps over the network."""
    own, text = {0: first}, system.encode_text(PROMPTS)
    for place, past, ahead in order:
        noisy = draw((2, 1, *first.shape[1:]), [frame_generator(seed, place) for seed in seeds])
        there = torch.full_like(first[:, :1], ahead is not None)
        other = torch.zeros_like(first) if ahead is None else own[ahead]
        image = torch.cat([own[past], other, there], dim=1)
        stride = torch.full((2,), float(place - past))
        scheduler = type(system.scheduler).from_config(system.scheduler.config)
        scheduler.set_timesteps(KEYED.steps)
        for timestep in scheduler.timesteps:
            with torch.no_grad():
                prediction = system.network(noisy, timestep.expand(2), image_latents=image, stride=stride, **text)
            noisy = scheduler.step(prediction, timestep, noisy, return_dict=False)[0]
        own[place] = system.codec.denormalize(noisy[:, 0])
    return {place: system.codec.normalize(frame) for place, frame in own.items()}


def test_each_frame_is_made_from_the_keyframes_around_it(system: InstructPix2Pix, first: Tensor) -> None:
    """Frames 4 and 8 from those 4 before them; 2 and 6 between; then the odd ones. Frame 8 lies beyond the video."""
    order = [(4, 0, None), (8, 4, None), (2, 0, 4), (6, 4, 8), (1, 0, 2), (3, 2, 4), (5, 4, 6)]
    expected = by_hand(system, first, order)
    video = roll(system, first, 7)
    assert video.shape == (2, 7, 4, 8, 8)
    for place in range(7):
        torch.testing.assert_close(video[:, place], expected[place], rtol=1e-4, atol=1e-4)


def test_without_keyframes_no_frame_ahead_is_known(system: InstructPix2Pix, first: Tensor) -> None:
    expected = by_hand(system, first, [(1, 0, None), (2, 1, None), (3, 2, None)])
    video = roll(system, first, 4, Sampler(steps=2, guidance_scale=1.0, image_guidance_scale=1.0))
    for place in range(4):
        torch.testing.assert_close(video[:, place], expected[place], rtol=1e-4, atol=1e-4)
    text = system.encode_text(PROMPTS)
    given = torch.stack([first, torch.randn_like(first)], dim=1)  # the frame ahead of a training window
    sampler = Sampler(steps=2, guidance_scale=1.0, image_guidance_scale=1.0)
    rolled = roll_windows(system, given, text, windows=3, seeds=[3, 7], sampler=sampler)
    for place, window in enumerate(rolled, start=1):
        torch.testing.assert_close(window.generated[:, 0], expected[place], rtol=1e-4, atol=1e-4)


def test_a_longer_video_begins_with_a_shorter_one_and_a_batch_changes_nothing(
    system: InstructPix2Pix, first: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, short = roll(system, first, 10), roll(system, first, 6)
    torch.testing.assert_close(long[:, :6], short, rtol=1e-4, atol=1e-4)
    alone = roll(system, first[:1], 6, seeds=[3])
    torch.testing.assert_close(alone, short[:1], rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 1)
    torch.testing.assert_close(roll(system, first, 10), long, rtol=1e-4, atol=1e-4)


def test_several_past_frames_and_an_anchor(first: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A past frame that the levels so far didn't make is marked as absent, however many are generated at once."""
    system = trained(past_frames=3, anchor=True)
    told: list[dict[str, Any]] = []
    condition = system.condition

    def noting(given: Tensor, text: Any, **more: Any) -> Any:
        told.append({"given": given, **more})
        return condition(given, text, **more)

    monkeypatch.setattr(system, "condition", noting)
    videos = []
    for rows in (1, 8):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", rows)
        videos.append(roll(system, first[:1], 6, seeds=[3]))
    torch.testing.assert_close(*videos, rtol=1e-4, atol=1e-4)
    whole = told[-4:]  # frames 4 and 8, those between 0, 4 and 8, the odd ones
    present = [row.int().tolist() for one in whole for row in one["present"]]
    #  anchor, three past frames, the frame ahead
    assert present[:2] == [[1, 0, 0, 1, 0], [1, 0, 1, 1, 0]]
    assert present[2:4] == [[1, 0, 0, 1, 1], [1, 1, 0, 1, 1]]  # frame 2 after 0; frame 6 after 4, (2), 0
    assert present[4:] == [[1, 0, 0, 1, 1], [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]]  # frame 5 after 4, (3), 2
    assert [one["fps"].unique().tolist() for one in whole] == [[1.25], [1.25], [2.5], [5.0]]
    for one in told:
        torch.testing.assert_close(one["given"][:, 0], first[:1].expand(len(one["given"]), -1, -1, -1))


def test_the_callback_counts_every_frame_once(system: InstructPix2Pix, first: Tensor) -> None:
    calls: list[tuple[int, Tensor]] = []
    video = roll(system, first, 7, callback=lambda count, latents: calls.append((count, latents)))
    assert [count for count, _ in calls] == [1, 3, 6]  # frame 8 is none of the video
    latents = torch.cat([latents for _, latents in calls], dim=1)
    torch.testing.assert_close(latents, video[:, [4, 2, 6, 1, 3, 5]])


def test_guidance_acts_between_keyframes_too(system: InstructPix2Pix, first: Tensor) -> None:
    guided = roll(system, first, 4, Sampler(steps=2, guidance_scale=2.0, image_guidance_scale=1.5, keyframe_stride=2))
    plain = roll(system, first, 4, Sampler(steps=2, guidance_scale=1.0, image_guidance_scale=1.0, keyframe_stride=2))
    assert not torch.allclose(guided[:, 1], plain[:, 1], atol=1e-2)
    negative = system.encode_text(["a green square moves up slowly over stripes"] * 2)
    led_away = roll(
        system,
        first,
        4,
        Sampler(steps=2, guidance_scale=2.0, image_guidance_scale=1.5, keyframe_stride=2),
        negative=negative,
    )
    assert not torch.allclose(guided[:, 3], led_away[:, 3], atol=1e-3)


@pytest.mark.parametrize("stride", [0, 3, -2])
def test_a_stride_is_a_power_of_two(stride: int) -> None:
    for kind in (Sampler, SamplerOptions):
        with pytest.raises(
            InputError, match=rf"keyframe_stride: expected a power of two \(1, 2, 4, ...\), got {stride}"
        ):
            kind(keyframe_stride=stride)


def test_what_a_model_was_not_trained_for(system: InstructPix2Pix, first: Tensor) -> None:
    with pytest.raises(InputError, match="keyframe_stride=4: the model takes no frame ahead; expected 1, or a model"):
        roll(load_system("tiny"), first, 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is a stride of 8 frames, and the model was trained with 1 to 4"):
        roll(system, first, 4, Sampler(steps=2, keyframe_stride=8))
    with pytest.raises(InputError, match="is a stride of 8 frames"):
        roll(system, first, 4, fps=2.5)
    with pytest.raises(InputError, match="layout: the noise of keyframes follows none"):
        roll(system, first, 4, layout=torch.zeros(2, 4, 4, 8, 8))


def test_a_video_of_one_frame_or_two(system: InstructPix2Pix, first: Tensor) -> None:
    torch.testing.assert_close(roll(system, first, 1)[:, 0], system.codec.normalize(first))
    torch.testing.assert_close(roll(system, first, 2), roll(system, first, 5)[:, :2], rtol=1e-4, atol=1e-4)
