"""Emu Video: exactly the image model at the start, what each task trains and is told, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from video_models import (
    TEXT_WIDTH,
    check_checkpointing,
    check_compiles,
    emu_video,
    gradients,
    image_unet,
    randn,
    stir,
    told,
    zero_snr_scheduler,
)

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.consisti2v import ConsistI2VConfig
from contrastive_i2v.models.emu_video import EmuVideo, EmuVideoConfig
from contrastive_i2v.randomness import seeded
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import first_frames, rollout
from contrastive_i2v.system import Window


@pytest.fixture
def v_folder(base_folder: Path, tmp_path: Path) -> Path:
    """The text-to-image folder with v prediction and no signal at the last timestep."""
    folder = Path(shutil.copytree(base_folder, tmp_path / "v"))
    shutil.rmtree(folder / "scheduler")
    zero_snr_scheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def system(base_folder: Path) -> EmuVideo:
    return emu_video(base_folder, stirred=True)


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
@pytest.mark.parametrize("conditioned", [True, False])
def test_it_starts_as_exactly_the_image_model(base_folder: Path, frames: int, conditioned: bool) -> None:
    """Frame by frame the same bits as the UNet on that batch, whatever the image and its mask say, in float32."""
    system, image = emu_video(base_folder), image_unet(base_folder)
    noisy, known = randn(2, frames, 4, 8, 8), randn(2, frames, 5, 8, 8, seed=4) if conditioned else None
    text, timesteps = randn(2, 12, TEXT_WIDTH, seed=1), torch.tensor([3, 700])
    with torch.no_grad():
        rows = (noisy.flatten(0, 1), timesteps.repeat_interleave(frames), text.repeat_interleave(frames, dim=0))
        expected = image(*rows).sample
        actual = system.network(noisy, timesteps, text, known)
        # without a condition frames are images; as clips they go through the temporal layers
        as_clips = system.network.predict(noisy, timesteps, text)
    assert torch.equal(actual.flatten(0, 1), expected) and torch.equal(as_clips.flatten(0, 1), expected)


def test_the_condition_is_more_input_channels(base_folder: Path) -> None:
    """Convolved and added, it is what 2C + 1 input channels of the first convolution would give."""
    system = emu_video(base_folder)
    assert system.temporal.conv_condition is not None
    stir(system.temporal.conv_condition)
    image = image_unet(base_folder)
    wide = nn.Conv2d(9, 16, 3, padding=1)
    weights = torch.cat([image.conv_in.weight, system.temporal.conv_condition.weight], dim=1)
    wide.load_state_dict({"weight": weights.detach(), "bias": image.conv_in.bias.detach()})
    image.conv_in = wide
    noisy, known, text = randn(2, 3, 4, 8, 8), randn(2, 3, 5, 8, 8, seed=2), randn(2, 12, TEXT_WIDTH, seed=3)
    timesteps = torch.tensor([100, 900])
    inputs = torch.cat([noisy, known], dim=2).flatten(0, 1)
    expected = image(inputs, timesteps.repeat_interleave(3), text.repeat_interleave(3, dim=0)).sample
    actual = system.network(noisy, timesteps, text, known)
    torch.testing.assert_close(actual.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(actual, system.network(noisy, timesteps, text, 0 * known), atol=1e-3)


def test_a_video_model_is_told_the_first_frame_and_that_it_is_there(system: EmuVideo) -> None:
    given, text = randn(2, 1, 4, 8, 8), {"prompt_embeds": randn(2, 12, TEXT_WIDTH)}
    condition = system.condition(given, text)
    known = condition["known"]
    assert known.shape == (2, 4, 5, 8, 8)
    assert torch.equal(known[:, 0, :4], given[:, 0] * 0.5) and bool((known[:, 0, 4] == 1).all())
    assert not bool(known[:, 1:].any())
    drop = system.drop(condition, image=torch.tensor([True, False]), text=torch.tensor([False, True]))
    assert not bool(drop["known"][0].any()) and torch.equal(drop["known"][1], known[1])
    assert torch.equal(drop["prompt_embeds"][0], text["prompt_embeds"][0])
    assert torch.equal(drop["prompt_embeds"][1], system.null_embeds[0])
    assert system.window == Window(4, regenerates=True) and system.window.generated == (0, 1, 2, 3)


def test_text_to_video_alone_is_told_no_image(base_folder: Path) -> None:
    system = emu_video(base_folder, factorised=False)
    condition = system.condition(randn(2, 1, 4, 8, 8), {"prompt_embeds": randn(2, 12, TEXT_WIDTH)})
    assert condition["known"].shape == (2, 4, 5, 8, 8) and not bool(condition["known"].any())


def test_an_interpolation_model_is_told_its_keyframes(base_folder: Path, tmp_path: Path) -> None:
    """8 keyframes at 4, 8, .. 32 of 37; with noise of their own in sampling alone, where the model is made for it."""
    emu_video(base_folder, stirred=True).save(tmp_path / "video")
    system = load_system(tmp_path / "video", EmuVideoConfig(task="interpolation"), device="cpu")
    assert isinstance(system, EmuVideo)
    places = [4, 8, 12, 16, 20, 24, 28, 32]
    assert system.window == Window(37, tuple(places), regenerates=True)
    given, text = randn(1, 8, 4, 8, 8), {"prompt_embeds": randn(1, 12, TEXT_WIDTH)}
    known = system.condition(given, text)["known"]
    assert torch.equal(known[:, places, :4], given * 0.5)
    mask = torch.zeros(37)
    mask[places] = 1
    assert torch.equal(known[0, :, 4, 0, 0], mask)
    assert torch.equal(known[:, :, :4].abs().amax((0, 2, 3, 4)) > 0, mask > 0)

    def noise(sampling: bool) -> torch.Tensor:
        return system.noise((1, 37, 4, 8, 8), seeded(0), given=given, sampling=sampling)

    assert noise(False).shape[1] == 37 and noise(True).shape[1] == 8 + 37
    own = randn(1, 8, 4, 8, 8, seed=5)
    told_noise = system.condition(given, text, noise=own)["known"][:, places, :4] - 0.5 * given
    torch.testing.assert_close(told_noise, 0.34 * own, rtol=1e-5, atol=1e-6)
    plain = load_system(tmp_path / "video", EmuVideoConfig(task="interpolation", keyframe_noise=0.0), device="cpu")
    assert plain.noise((1, 37, 4, 8, 8), seeded(0), given=given, sampling=True).shape[1] == 37


def test_what_each_task_trains(base_folder: Path, tmp_path: Path) -> None:
    """The UNet of an image model; temporal layers and the image's channels of a video model; the former alone of an
    interpolation model."""

    def names(system: Any) -> set[str]:
        moving = {id(value) for value in system.trainable()}
        found = {name for name, value in system.network.named_parameters() if id(value) in moving}
        assert len(moving) == len(found) == len(system.trainable())
        return {".".join(name.split(".")[: 1 if name.startswith("unet") else 2]) for name in found}

    image = emu_video(base_folder, task="image")
    assert names(image) == {"unet"}
    assert names(emu_video(base_folder)) == {"temporal.layers", "temporal.conv_condition"}
    thawed = emu_video(base_folder, freeze_spatial=False)
    assert names(thawed) == {"temporal.layers", "temporal.conv_condition", "unet"}
    assert len(thawed.trainable()) == len(list(thawed.network.parameters()))
    thawed.save(tmp_path / "video")
    assert names(load_system(tmp_path / "video", EmuVideoConfig(task="interpolation"), device="cpu")) == {
        "temporal.layers"
    }


def test_what_is_zero_at_the_start_learns(base_folder: Path) -> None:
    """The convolutions, the last projections of the attentions, and the image's channels have a gradient at once."""
    found = gradients(emu_video(base_folder))
    for name in ("conv.weight", "conv.bias", "attn.to_out.0.weight", "conv_condition.weight"):
        some = {key: g for key, g in found.items() if key.startswith("temporal.") and key.endswith(name)}
        assert some and all(bool(g.any()) for g in some.values()), name
    inner = [g for key, g in found.items() if key.startswith("temporal.") and ".attn.to_q." in key]
    assert inner and not any(bool(g.any()) for g in inner)  # behind a projection that is zero


def test_the_image_model_leaves_the_temporal_layers_out(base_folder: Path) -> None:
    """A trained convolution over time is no identity at one frame, so images bypass it; the parts are shared."""
    system, image = emu_video(base_folder, stirred=True), image_unet(base_folder)
    still = system.still()
    assert still.config.task == "image" and still.window == Window(1, given=())
    assert system.config.task == "video" and system.window.length == 4 and still.network is system.network
    text, timesteps = randn(2, 12, TEXT_WIDTH), torch.tensor([3, 700])
    condition = still.condition(randn(2, 0, 4, 8, 8), {"prompt_embeds": text})
    assert condition.keys() == {"prompt_embeds"}
    noisy = randn(2, 1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(
            still.network(noisy, timesteps, **condition)[:, 0], image(noisy[:, 0], timesteps, text).sample
        )
        assert not torch.allclose(system.network.predict(noisy, timesteps, text), still.network(noisy, timesteps, text))


def test_text_becomes_an_image_and_the_image_a_video(v_folder: Path) -> None:
    """Through the last timestep, which has no signal; the first frame is kept, and each further window adds T - 1."""
    system = emu_video(v_folder, stirred=True, zero_terminal_snr=True)
    text = system.encode_text(["a red ball rolls", "make it snow"])
    sampler = Sampler(steps=2, guidance_scale=2.0, image_guidance_scale=2.0)
    first = first_frames(system, text, size=(16, 16), seeds=[1, 2], sampler=sampler)
    assert first.shape == (2, 4, 8, 8) and bool(first.isfinite().all())
    video = rollout(system, first, text, frames=10, seeds=[1, 2], sampler=sampler)
    assert video.shape == (2, 10, 4, 8, 8) and bool(video.isfinite().all())
    torch.testing.assert_close(video[:, 0], first * 0.5)


def test_a_base_model_becomes_an_image_model_without_signal_at_the_end(base_folder: Path) -> None:
    """sqrt(abar) shifted and scaled to end at 0 and keep its start; v prediction; trailing timesteps."""
    system = load_system(base_folder, EmuVideoConfig(), device="cpu")
    config = system.scheduler.config
    assert config.prediction_type == "v_prediction" and config.timestep_spacing == "trailing"
    system.scheduler.set_timesteps(4)
    assert int(system.scheduler.timesteps[0]) == 999
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = system.schedule.alphas_cumprod
    assert abar is not None and float(abar[-1]) == 0
    torch.testing.assert_close(abar, root**2, rtol=1e-10, atol=1e-14)
    last = torch.tensor([999])
    clean, noise = randn(1, 1, 4, 2, 2), randn(1, 1, 4, 2, 2, seed=1)
    assert torch.equal(system.schedule.add_noise(clean, noise, last), noise)
    assert torch.equal(system.schedule.target(clean, noise, last), -clean)  # v is all signal where x is all noise
    kept = load_system(base_folder, EmuVideoConfig(zero_terminal_snr=False), device="cpu").scheduler.config
    assert kept.prediction_type == "epsilon" and not kept.rescale_betas_zero_snr


def test_a_saved_model_predicts_the_same_and_opens_as_an_image_model(v_folder: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    system = emu_video(v_folder, stirred=True, zero_terminal_snr=True, frames=3)
    system.save(tmp_path / "saved")
    again = load_system(tmp_path / "saved", device="cpu")
    assert isinstance(again, EmuVideo) and again.config == system.config and again.window == system.window
    inputs, condition = (randn(2, 3, 4, 8, 8), torch.tensor([10, 999])), told(system, 2)
    assert torch.equal(again.network(*inputs, **condition), system.network(*inputs, **condition))
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    noisy, timesteps, text = randn(2, 4, 8, 8), torch.tensor([10, 999]), condition["prompt_embeds"]
    still = system.still().network(noisy[:, None], timesteps, text)[:, 0]
    assert torch.equal(pipeline.unet(noisy, timesteps, text).sample, still)
    assert pipeline.scheduler.config.rescale_betas_zero_snr and pipeline.unet.config.in_channels == 4
    assert NoiseSchedule.from_config(pipeline.scheduler.config).prediction_type == "v_prediction"


def test_checkpointing_keeps_the_gradients(system: EmuVideo) -> None:
    check_checkpointing(system)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_network_compiles_whole(system: EmuVideo, backend: str) -> None:
    check_compiles(system, backend)


def test_noise_is_independent_and_follows_no_layout(system: EmuVideo) -> None:
    given = randn(32, 1, 4, 8, 8)
    noise = system.noise((32, 4, 4, 8, 8), seeded(0), given=given, sampling=True)
    correlation = torch.corrcoef(noise.double().transpose(0, 1).flatten(1))
    torch.testing.assert_close(correlation, torch.eye(4, dtype=torch.float64), rtol=0, atol=0.06)
    with pytest.raises(InputError, match="layout: the noise of emu-video follows none; expected None"):
        system.noise((32, 4, 4, 8, 8), seeded(0), given=given, sampling=True, layout=randn(32, 5, 4, 8, 8))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frames": 1}, "frames: expected at least 2, got 1"),
        ({"keyframes": 1}, "keyframes: expected at least 2, got 1"),
        ({"gap": 1}, "gap: expected at least 2, got 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        EmuVideoConfig(**options)


def refused(source: Path, config: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        load_system(source, config, device="cpu")
    assert "\n" not in str(error.value)


def test_models_that_a_task_cannot_start_from_are_refused(
    base_folder: Path, v_folder: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    """Each says which model it starts from."""
    video, between = EmuVideoConfig(task="video"), EmuVideoConfig(task="interpolation")
    refused(base_folder, video, r"predicts epsilon.*\(zero_terminal_snr\); expected v prediction: train an image model")
    refused(pipeline_folder, video, "is an InstructPix2Pix model.*expected a text-to-image one")
    refused(v_folder, between, "is no video model; interpolation starts from one: train it with task=video first")
    signal = Path(shutil.copytree(v_folder, tmp_path / "signal"))
    scheduler = type(zero_snr_scheduler()).from_config(zero_snr_scheduler().config, rescale_betas_zero_snr=False)
    scheduler.save_pretrained(signal / "scheduler")
    refused(signal, video, "keeps signal at the last timestep; expected none .zero_terminal_snr.")

    load_system(v_folder, EmuVideoConfig(), device="cpu").save(tmp_path / "image")
    refused(tmp_path / "image", between, "was trained with task=image, and task=interpolation starts from video")
    refused(tmp_path / "image", EmuVideoConfig(zero_terminal_snr=False), "was trained with True; expected that")
    refused(tmp_path / "image", ConsistI2VConfig(), "is of kind emu-video; expected consisti2v")
    broken = Path(shutil.copytree(tmp_path / "image", tmp_path / "broken"))
    shutil.rmtree(broken / "temporal")
    refused(broken, None, "broken' lacks temporal/, the temporal layers beside unet/; expected the whole folder")
    assert load_system(tmp_path / "image", video, device="cpu").window == Window(8, regenerates=True)
