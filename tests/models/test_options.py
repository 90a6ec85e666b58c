"""Several past frames, an anchor, the level of their noise, the stride and a frame ahead: inputs that start without a
say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2Pix, InstructPix2PixConfig
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Condition, Window

OPTIONS = [
    {"past_frames": past, "anchor": anchor, **number}
    for past, anchor, number in product((1, 2, 3, 4), (False, True), ({}, {"noise_level": True}, {"max_stride": 4}))
]


def open_with(folder: Path, **options: Any) -> InstructPix2Pix:
    system = load_system(folder, InstructPix2PixConfig(**options), device="cpu")
    assert isinstance(system, InstructPix2Pix)
    return system


def frames(system: InstructPix2Pix, count: int = 3) -> torch.Tensor:
    """Given frames `[count, n, 4, 8, 8]` for the system's window."""
    return torch.randn(count, system.window.frames - 1, 4, 8, 8)


def predict(system: InstructPix2Pix, given: torch.Tensor, **told: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(len(given), 1, 4, 8, 8, generator=generator)
    text = {"prompt_embeds": torch.randn(len(given), 12, 16, generator=generator)}
    timesteps = torch.arange(len(given)) * 300 + 5
    with torch.no_grad():
        prediction: torch.Tensor = system.network(noisy, timesteps, **system.condition(given, text, **told))
    return prediction


def give_every_input_a_say(system: InstructPix2Pix) -> None:
    """As training would."""
    with torch.no_grad():
        system.unet.conv_in.weight.normal_(std=0.1)
        if system.config.noise_level or system.config.ahead:
            system.unet.class_embedding.linear_2.weight.normal_()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_a_grown_model_starts_as_the_plain_one(
    model: InstructPix2Pix, pipeline_folder: Path, options: dict[str, Any]
) -> None:
    grown = open_with(pipeline_folder, **options)
    past, anchor = options["past_frames"], options["anchor"]
    ahead = "max_stride" in options
    assert grown.window == Window(past + 1, tuple(range(past)), anchor=anchor, ahead=ahead) and grown.window.rolls
    channels = 8 + 5 * (past - 1) + 4 * anchor + 5 * ahead
    assert grown.unet.config.in_channels == grown.unet.conv_in.in_channels == channels
    assert torch.equal(grown.unet.conv_in.bias, model.unet.conv_in.bias) and model.unet.conv_in.bias.abs().sum() > 0

    given = frames(grown)
    present = torch.rand(given.shape[:2]) < 0.5
    fps = grown.fps / torch.tensor([1.0, 2.0, 4.0])
    told = predict(grown, given, present=present, noise_level=torch.tensor([0.0, 0.3, 1.0]), fps=fps)
    assert torch.equal(told, predict(model, given[:, -2:-1] if ahead else given[:, -1:]))


def test_a_base_model_may_grow_at_once(base_folder: Path, build_pipeline: Callable[..., Any]) -> None:
    base = build_pipeline(in_channels=4).unet
    grown = open_with(base_folder, past_frames=3, anchor=True, noise_level=True)
    noisy, embeds = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 16)
    condition = grown.condition(frames(grown, 2), {"prompt_embeds": embeds})
    with torch.no_grad():
        expected = base(noisy, torch.tensor([3, 700]), encoder_hidden_states=embeds).sample
        actual = grown.network(noisy[:, None], torch.tensor([3, 700]), **condition)[:, 0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_the_condition_is_the_newest_frame_then_older_ones_with_masks_then_the_anchor(pipeline_folder: Path) -> None:
    system = open_with(pipeline_folder, past_frames=3, anchor=True)
    given, present = frames(system, 2), torch.tensor([[True, True, True, True], [True, False, False, True]])
    condition = system.condition(given, {"prompt_embeds": torch.zeros(2, 12, 16)}, present=present)
    first, oldest, older, newest = given.unbind(1)
    there, missing = torch.ones(1, 8, 8), torch.zeros(1, 8, 8)
    expected = [
        torch.cat([newest[row], older[row], mark, oldest[row], mark, first[row]])
        for row, mark in enumerate((there, missing))
    ]
    assert torch.equal(condition["image_latents"], torch.stack(expected)) and "noise_level" not in condition
    everything = system.condition(given, {"prompt_embeds": torch.zeros(2, 12, 16)})
    assert torch.equal(everything["image_latents"][:, [8, 13]], torch.ones(2, 2, 8, 8))


def test_the_frame_ahead_has_a_mask_and_is_hidden_where_it_is_absent(pipeline_folder: Path, tmp_path: Path) -> None:
    system = open_with(pipeline_folder, past_frames=2, anchor=True, max_stride=4)
    given, present = frames(system, 2), torch.tensor([[True, True, True, True], [True, True, True, False]])
    text = {"prompt_embeds": torch.zeros(2, 12, 16)}
    condition = system.condition(given, text, present=present, fps=torch.tensor([5.0, 1.25]))
    first, older, newest, ahead = given.unbind(1)
    there, missing = torch.ones(1, 8, 8), torch.zeros(1, 8, 8)
    expected = [
        torch.cat([newest[0], older[0], there, first[0], ahead[0], there]),
        torch.cat([newest[1], older[1], there, first[1], torch.zeros_like(ahead[1]), missing]),
    ]
    assert torch.equal(condition["image_latents"], torch.stack(expected))
    assert condition["stride"].tolist() == [1.0, 4.0] and "noise_level" not in condition
    both = torch.ones(2, dtype=torch.bool)
    dropped = system.drop(condition, image=both, text=~both)
    assert not dropped["image_latents"].any() and dropped["stride"].tolist() == [1.0, 4.0]

    give_every_input_a_say(system)
    system.save(tmp_path)
    again = load_system(tmp_path, device="cpu")
    assert isinstance(again, InstructPix2Pix) and again.config == system.config and again.max_stride == 4
    predicted = predict(again, given, present=present)
    assert torch.equal(predicted, predict(system, given, present=present))
    moved = given + torch.tensor([0.0, 0.0, 0.0, 1.0]).view(4, 1, 1, 1)
    changed = (predict(again, moved, present=present) != predicted).flatten(1).any(1)
    assert changed.tolist() == [True, False]
    slower = predict(again, given, present=present, fps=torch.tensor([2.5, 2.5]))
    assert (slower != predicted).flatten(1).any(1).all()


def test_a_model_that_was_saved_before_there_were_strides_opens(pipeline_folder: Path, tmp_path: Path) -> None:
    open_with(pipeline_folder, past_frames=2).save(tmp_path)
    file = tmp_path / "system.json"
    said = json.loads(file.read_text())
    del said["system"]["max_stride"], said["sampler"]["keyframe_stride"]
    file.write_text(json.dumps(said))
    plain, grown = load_system(tmp_path, device="cpu"), open_with(tmp_path, max_stride=2)
    assert isinstance(plain, InstructPix2Pix)
    assert plain.config.max_stride == 1 and plain.sampler.keyframe_stride == 1 and plain.max_stride is None
    given = frames(grown)
    assert torch.equal(predict(grown, given), predict(plain, given[:, :2]))


def test_a_saved_model_grows_on_and_keeps_its_outputs(pipeline_folder: Path, tmp_path: Path) -> None:
    two = open_with(pipeline_folder, past_frames=2)
    give_every_input_a_say(two)
    two.save(tmp_path / "two")
    given, present = frames(two), torch.tensor([[True, True], [False, True], [True, True]])
    expected = predict(two, given, present=present)
    assert not torch.equal(expected, predict(two, given))  # the mask has a say
    assert not torch.equal(expected, predict(two, given + torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), present=present))

    four = open_with(tmp_path / "two", past_frames=4, anchor=True, noise_level=True)
    more = torch.cat([torch.randn(3, 3, 4, 8, 8), given], dim=1)  # the anchor, and two still older frames
    more_present = torch.cat([torch.tensor([[True, False, True]] * 3), present], dim=1)
    told = predict(four, more, present=more_present, noise_level=torch.rand(3))
    torch.testing.assert_close(told, expected, rtol=0, atol=1e-6)
    assert torch.equal(four.unet.conv_in.bias, two.unet.conv_in.bias)

    give_every_input_a_say(four)
    four.save(tmp_path / "four")
    again = load_system(tmp_path / "four", device="cpu")
    assert torch.equal(
        predict(again, more, present=more_present, noise_level=torch.full((3,), 0.5)),
        predict(four, more, present=more_present, noise_level=torch.full((3,), 0.5)),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"past_frames": 2}, "past_frames: the model was trained with 3; expected that or more, got 2"),
        ({"anchor": False}, "anchor: the model was trained with True; expected that or more, got False"),
        ({"noise_level": False}, "noise_level: the model was trained with True; expected that or more, got False"),
        ({"max_stride": 2}, "noise_level, max_stride=2: the network embeds one number; expected one of them"),
    ],
)
def test_a_model_is_not_shrunk(pipeline_folder: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    open_with(pipeline_folder, past_frames=3, anchor=True, noise_level=True).save(tmp_path)
    with pytest.raises(InputError, match=message):
        open_with(tmp_path, **options)


@pytest.mark.parametrize("past", [0, 17])
def test_past_frames_have_bounds(past: int) -> None:
    with pytest.raises(InputError, match=f"past_frames: expected 1 to 16, got {past}"):
        InstructPix2PixConfig(past_frames=past)


def test_a_folder_keeps_what_the_model_is(pipeline_folder: Path, tmp_path: Path) -> None:
    system = open_with(pipeline_folder, past_frames=2, anchor=True, noise_level=True)
    system.sampler = Sampler(steps=7, guidance_scale=2.5, image_guidance_scale=1.25)
    system.size, system.fps = (24, 16), 12.5
    system.save(tmp_path)
    assert json.loads((tmp_path / "system.json").read_text()) == {
        "system": {"kind": "instruct-pix2pix", "past_frames": 2, "anchor": True, "noise_level": True, "max_stride": 1},
        "sampler": {
            "steps": 7,
            "keyframe_stride": 1,
            "guidance_scale": 2.5,
            "image_guidance_scale": 1.25,
            "guidance_interval": [0.0, 1.0],
            "history_level": 0.0,
            "prediction_scale": 1.0,
            "prediction_slope": 0.0,
        },
        "size": [24, 16],
        "fps": 12.5,
    }
    for asked in (None, InstructPix2PixConfig(), InstructPix2PixConfig(past_frames=2)):
        opened = load_system(tmp_path, asked, device="cpu")
        assert asdict(opened.config) == asdict(system.config) and opened.window == system.window
        assert (opened.sampler, opened.size, opened.fps) == (system.sampler, (24, 16), 12.5)
    opened.save(tmp_path / "again")
    assert (tmp_path / "again" / "system.json").read_text() == (tmp_path / "system.json").read_text()


def test_a_folder_without_a_description_says_what_its_weights_say(model: InstructPix2Pix) -> None:
    assert model.config == InstructPix2PixConfig(past_frames=1, anchor=False, noise_level=False, max_stride=1)
    assert model.size == (16, 16) and model.window == Window(2) and model.sampler == Sampler()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("past_frames", 3, "in_channels=13.*expected in_channels 4 .* or 18"),
        ("noise_level", True, "class_embed_type=None; expected 'timestep': its system.json belongs to other weights"),
        ("kind", "consist-i2v", "kind 'consist-i2v' is unknown"),
        ("colour", "red", "colour"),
    ],
)
def test_a_description_of_other_weights_is_refused(
    pipeline_folder: Path, tmp_path: Path, part: str, value: Any, message: str
) -> None:
    open_with(pipeline_folder, past_frames=2).save(tmp_path)
    file = tmp_path / "system.json"
    values = json.loads(file.read_text())
    values["system"][part] = value
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        load_system(tmp_path)


def test_the_noise_levels_embedding_starts_at_zero_and_learns(pipeline_folder: Path) -> None:
    system = open_with(pipeline_folder, noise_level=True)
    level = torch.tensor([0.0, 0.2, 0.9])
    embedded = system.unet.class_embedding(system.unet.time_proj(1000 * level))
    assert embedded.shape == (3, 64) and torch.equal(embedded, torch.zeros(3, 64))
    first, time = system.unet.class_embedding.linear_1, system.unet.time_embedding.linear_1
    assert torch.equal(first.weight, time.weight) and first.weight is not time.weight

    given, text = frames(system), {"prompt_embeds": torch.randn(3, 12, 16)}
    condition = system.condition(given, text, noise_level=level)
    system.network(torch.randn(3, 1, 4, 8, 8), torch.tensor([5, 6, 7]), **condition).square().sum().backward()
    last = system.unet.class_embedding.linear_2
    assert last.weight.grad.abs().sum() > 0 and last.bias.grad.abs().sum() > 0

    give_every_input_a_say(system)
    assert not torch.equal(predict(system, given, noise_level=level), predict(system, given))
    assert torch.equal(predict(system, given, noise_level=torch.zeros(3)), predict(system, given))  # None is no noise


def test_what_is_dropped_is_dropped_whole_and_the_rest_stays(pipeline_folder: Path) -> None:
    system = open_with(pipeline_folder, past_frames=3, anchor=True, noise_level=True)
    text = system.encode_text(["a red ball rolls", "make it snow", "to the left", "to the right"])
    condition = system.condition(frames(system, 4), text, noise_level=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    before: Condition = {name: value.clone() for name, value in condition.items()}
    image, words = torch.tensor([True, False, True, False]), torch.tensor([False, False, True, True])
    dropped = system.drop(condition, image=image, text=words)
    assert dropped.keys() == condition.keys()
    for name, where, null in (
        ("image_latents", image, torch.zeros(1, 4 + 5 + 5 + 4, 8, 8)),
        ("noise_level", image, torch.zeros(1)),
        ("prompt_embeds", words, system.encode_text([""])["prompt_embeds"]),
    ):
        assert torch.equal(dropped[name][where], null.expand(2, *null.shape[1:])), name
        assert torch.equal(dropped[name][~where], before[name][~where]), name
        assert torch.equal(condition[name], before[name]), name  # what it was given is not written to
    assert before["image_latents"][:, [8, 13]].eq(1).all()  # the masks were there
