"""ConsistI2V with a timestep a frame: what the network sees and is told, in training and with history guidance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from video_models import (
    TEXT_WIDTH,
    check_checkpointing,
    check_compiles,
    consisti2v,
    emu_video,
    gradients,
    randn,
    stir,
    told,
)

from contrastive_i2v.data.examples import Example
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.consisti2v import ConsistI2V
from contrastive_i2v.randomness import frame_generator, seeded
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout
from contrastive_i2v.training.config import TimestepsConfig
from contrastive_i2v.training.inputs import Inputs, loss_rows, make_inputs


@pytest.fixture
def system(base_folder: Path) -> ConsistI2V:
    """Windows of five frames, two of them given."""
    return consisti2v(base_folder, frames=5, past_frames=2, frame_timesteps=True, stirred=True)


def inputs_of(system: ConsistI2V, *, size: int = 3, dropout: float = 0.0, present: Tensor | None = None) -> Inputs:
    window = system.window.length
    batch = Example(
        raw=torch.cat([randn(size, window, 4, 8, 8), torch.full((size, window, 4, 8, 8), -30.0)], dim=2),
        present=torch.ones(size, window, dtype=torch.bool) if present is None else present,
        text={"prompt_embeds": randn(size, 12, TEXT_WIDTH, seed=1)},
        fps=torch.full((size,), system.fps),
        group=torch.arange(size),
    )
    return make_inputs(
        batch,
        system,
        schedule=system.schedule,
        timesteps=TimestepsConfig(),
        conditioning_dropout=dropout,
        generator=seeded(3),
    )


def seen(system: ConsistI2V, *args: Any, **condition: Tensor) -> tuple[Tensor, Tensor]:
    """The frames `[B, T, C, h, w]` and timesteps `[B, T]` that reach the UNet."""
    asked: list[tuple[Tensor, Tensor]] = []
    hook = system.unet.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[:2]))
    system.network(*args, **condition)
    hook.remove()
    ((frames, timesteps),) = asked
    return frames.unflatten(0, (-1, system.window.length)), timesteps.unflatten(0, (-1, system.window.length))


def noised(system: ConsistI2V, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    assert system.schedule.alphas_cumprod is not None
    abar = system.schedule.alphas_cumprod[timesteps].view(*timesteps.shape, 1, 1, 1)
    return abar.sqrt() * clean.double() + (1 - abar).sqrt() * noise.double()


def test_training_noises_every_frame_to_a_timestep_of_its_own_and_says_so(system: ConsistI2V) -> None:
    inputs = inputs_of(system)
    assert inputs.timesteps.shape == (3, 3) and inputs.condition["history_timesteps"].shape == (3, 2)
    every = torch.cat([inputs.condition["history_timesteps"], inputs.timesteps], dim=1)
    assert all(len(row.unique()) == 5 for row in every)
    frames, timesteps = seen(system, inputs.noisy_latents, inputs.timesteps, **inputs.condition)
    assert torch.equal(timesteps, every)
    clean = torch.cat([inputs.condition["history"], inputs.clean_latents], dim=1)
    noise = torch.cat([inputs.condition["history_noise"], inputs.noise], dim=1)
    torch.testing.assert_close(frames.double(), noised(system, clean, noise, every), rtol=0, atol=1e-6)
    rows = loss_rows(inputs, "frame")
    assert torch.equal(rows.timesteps, inputs.timesteps.flatten())
    at_rows = noised(system, rows.clean_latents, rows.noise, rows.timesteps)
    torch.testing.assert_close(rows.noisy_latents.double(), at_rows, rtol=0, atol=1e-6)


def test_another_timestep_changes_its_own_frame_alone(system: ConsistI2V) -> None:
    condition, noisy = told(system, 1), randn(1, 3, 4, 8, 8)
    for frame in range(2):
        other = condition | {"history_timesteps": condition["history_timesteps"].clone()}
        other["history_timesteps"][:, frame] = 700
        before, after = (seen(system, noisy, torch.tensor([[5, 6, 7]]), **one) for one in (condition, other))
        for old, new in zip(before, after, strict=True):
            assert [bool((old[:, i] != new[:, i]).any()) for i in range(5)] == [i == frame for i in range(5)]


def test_one_timestep_for_all_is_the_model_without(base_folder: Path) -> None:
    """In float64: with all frames at t, the given one too, it is a dropped image of the plain model."""
    systems = [consisti2v(base_folder, stirred=True, frame_timesteps=each) for each in (True, False)]
    own, plain = (system.to(dtype=torch.float64) for system in systems)
    text = {"prompt_embeds": randn(2, 12, TEXT_WIDTH).double()}
    given, noise = randn(2, 1, 4, 8, 8).double(), randn(2, 1, 4, 8, 8, seed=1).double()
    at, noisy = torch.tensor([20, 700]), randn(2, 3, 4, 8, 8, seed=2).double()
    condition = plain.condition(given, text, noise=noise)
    expected = plain.network(noisy, at, **condition | {"without_image": torch.tensor([True, True])})
    told_own = own.noise_history(own.condition(given, text, noise=noise), at[:, None])
    for timesteps in (at, at[:, None].expand(2, 3)):
        actual = own.network(noisy, timesteps, **told_own)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_frames_before_the_first_and_dropped_ones_are_noise(system: ConsistI2V) -> None:
    present = torch.tensor([[False, True, True, True, True]] * 3)
    history = inputs_of(system, present=present).condition["history_timesteps"]
    assert history[:, 0].tolist() == [999] * 3 and bool((history[:, 1] < 999).all())
    text, given = {"prompt_embeds": randn(3, 12, TEXT_WIDTH)}, randn(3, 2, 4, 8, 8)
    condition = system.condition(given, text, present=present[:, :2], noise=given)
    assert condition["history_timesteps"].tolist() == [[999, 0]] * 3
    assert system.noise_history(condition, 400)["history_timesteps"].tolist() == [[999, 400]] * 3
    some = torch.tensor([True, False, True])
    drop = system.drop(condition, image=some, text=~some)
    assert drop["history_timesteps"].tolist() == [[999, 999], [999, 0], [999, 999]]
    inputs = inputs_of(system, size=40, dropout=0.2)
    assert torch.equal((inputs.condition["history_timesteps"] == 999).all(1), ~inputs.has_condition)


def test_everything_has_a_gradient(system: ConsistI2V) -> None:
    stir(system.unet.class_embedding)
    for alpha in system.temporal.alphas().values():
        alpha.data.fill_(0.4)
    assert [name for name, gradient in gradients(system).items() if not bool(gradient.any())] == []
    check_checkpointing(system)


@pytest.mark.slow
def test_the_network_compiles_whole(system: ConsistI2V) -> None:
    check_compiles(system, "aot_eager")


def test_noise_of_the_history_is_plain(system: ConsistI2V) -> None:
    """FrameInit would put the last given frame into it; the generated frames' noise follows that frame."""
    given = randn(1, 2, 4, 8, 8)
    last = torch.cat([9 * given[:, :1], given[:, 1:]], dim=1)
    plain, started, other = (
        system.noise((1, 3, 4, 8, 8), seeded(1), given=one, sampling=sampling)
        for one, sampling in ((given, False), (given, True), (last, True))
    )
    assert plain.shape == (1, 5, 4, 8, 8) and torch.equal(plain[:, :2], started[:, :2])
    assert (plain - started)[:, 2:].abs().amax((0, 2, 3, 4)).min() > 0.01
    assert torch.equal(started, other)


def test_a_saved_model_keeps_its_windows(system: ConsistI2V, tmp_path: Path) -> None:
    system.sampler = replace(system.sampler, history_level=0.25)
    system.save(tmp_path / "saved")
    again = load_system(tmp_path / "saved", device="cpu")
    assert again.frame_timesteps and again.window.given == (0, 1) and again.sampler == system.sampler
    assert not load_system(f"{tmp_path / 'saved'}?frame_timesteps=false&past_frames=1", device="cpu").frame_timesteps


def video(system: Any, scheduler: Any = None, **sampler: Any) -> Tensor:
    options: dict[str, Any] = {"steps": 3, "guidance_scale": 1.0, "image_guidance_scale": 2.0, **sampler}
    text = {"prompt_embeds": randn(1, 12, TEXT_WIDTH, seed=1)}
    return rollout(
        system, randn(1, 4, 8, 8), text, frames=6, seeds=[4], scheduler=scheduler, sampler=Sampler(**options)
    )


def test_history_guidance_by_the_definition(system: ConsistI2V) -> None:
    """Two steps of DDIM by hand: e(H, c) + (w - 1) (e(H_k, 0) - e(0, 0)) + (s_T - 1) (e(H, c) - e(H, 0))."""
    system.to(dtype=torch.float64)
    first, text = randn(1, 4, 8, 8), {"prompt_embeds": randn(1, 12, TEXT_WIDTH, seed=1).double()}
    guided = Sampler(steps=2, guidance_scale=3.0, image_guidance_scale=2.5, history_level=0.4)
    actual = rollout(system, first, text, frames=4, seeds=[4], sampler=guided)
    given = first[:, None].expand(-1, 2, -1, -1, -1)
    noise = system.noise((1, 3, 4, 8, 8), [frame_generator(4, 1)], given=given, sampling=True)
    present, null = torch.tensor([[False, True]]), {"prompt_embeds": system.null_embeds}
    clean, untold = (system.condition(given, one, present=present, noise=noise[:, :2]) for one in (text, null))
    by_step = system.scheduler
    by_step.set_timesteps(2)
    z = noise[:, 2:].double()
    for step in by_step.timesteps:
        e, image, level, nothing = (
            system.network(z, step.expand(1), **told_it).detach()
            for told_it in (
                clean,
                untold,
                untold | {"history_timesteps": torch.tensor([[999, 399]])},
                untold | {"history_timesteps": torch.tensor([[999, 999]])},
            )
        )
        z = by_step.step(e + 1.5 * (level - nothing) + 2.0 * (e - image), step, z, return_dict=False)[0]
    torch.testing.assert_close(actual[:, 1:].double(), z, rtol=1e-4, atol=1e-4)


def test_what_guidance_of_one_and_a_clean_level_are(system: ConsistI2V) -> None:
    plain = video(system, image_guidance_scale=1.0)
    assert torch.equal(video(system, image_guidance_scale=1.0, history_level=0.5), plain)
    vanilla, fractional = video(system), video(system, history_level=0.5)
    torch.testing.assert_close(video(system, history_level=0.001), vanilla, rtol=1e-3, atol=1e-3)  # timestep 0
    for one, other in ((plain, vanilla), (vanilla, fractional), (plain, fractional)):
        assert (one - other)[:, 1:].abs().amax((0, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("text_scale", [1.0, 2.0])
def test_a_schedulers_own_steps_guide_alike(system: ConsistI2V, text_scale: float) -> None:
    class Own(diffusers.DDIMScheduler):  # type: ignore[misc]
        """Not one that is linear by name."""

    options = {"guidance_scale": text_scale, "history_level": 0.5}
    by_step = video(system, Own.from_config(system.scheduler.config), **options)
    torch.testing.assert_close(by_step, video(system, **options), rtol=1e-3, atol=1e-3)


def test_refusals(base_folder: Path) -> None:
    with pytest.raises(InputError, match="past_frames=2: those before .*; expected 1, or frame_timesteps=True"):
        consisti2v(base_folder, past_frames=2)
    with pytest.raises(InputError, match=r"window: 4 frames of which \(0, 1, 2, 3\) are given"):
        consisti2v(base_folder, past_frames=4, frame_timesteps=True)
    for system in (consisti2v(base_folder), emu_video(base_folder)):
        for scale in (1.0, 2.0):
            with pytest.raises(
                InputError, match=f"history_level=0.3: {system.config.kind} isn't told .*--system.frame"
            ):
                video(system, history_level=0.3, image_guidance_scale=scale)
