"""ConsistI2V: where it starts, what its network is told, its noise, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from video_models import (
    TEXT_WIDTH,
    check_checkpointing,
    check_compiles,
    consisti2v,
    gradients,
    image_unet,
    randn,
    stir,
    told,
)

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_system
from contrastive_i2v.models.consisti2v import ConsistI2V, ConsistI2VConfig
from contrastive_i2v.models.emu_video import EmuVideoConfig
from contrastive_i2v.randomness import draw, frame_generator, seeded
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout


@pytest.fixture
def system(base_folder: Path) -> ConsistI2V:
    return consisti2v(base_folder, stirred=True)


def test_a_still_video_starts_as_the_image_model(base_folder: Path) -> None:
    """With all frames alike, attention to the first is attention to oneself; the temporal layers are left out."""
    system, image = consisti2v(base_folder, frames=5), image_unet(base_folder)
    latent, text, timesteps = randn(2, 1, 4, 8, 8), randn(2, 12, TEXT_WIDTH, seed=1), torch.tensor([3, 700])
    with torch.no_grad():
        expected = image(latent[:, 0], timesteps, text).sample
        actual = system.network(
            latent.expand(-1, 4, -1, -1, -1),
            timesteps,
            history=latent,
            history_noise=torch.zeros(2, 1, 4, 8, 8),
            without_image=torch.tensor([False, False]),
            stride=torch.tensor([1.0, 4.0]),
            prompt_embeds=text,
        )
    torch.testing.assert_close(actual, expected[:, None].expand_as(actual), rtol=0, atol=1e-6)


def test_at_alpha_one_only_the_alphas_learn_and_then_the_temporal_weights(base_folder: Path) -> None:
    """Each AdamW step moves an alpha by about the learning rate. One that would rise stays at 1, and its layer out."""
    rate, steps = 1e-3, 20
    system = consisti2v(base_folder)
    first = {name: g for name, g in gradients(system).items() if name.startswith("temporal.")}
    alphas = {name: float(g) for name, g in first.items() if name.endswith("alpha")}
    assert len(alphas) == len(system.temporal.alphas()) and 0 not in alphas.values()
    assert all(not bool(g.any()) for name, g in first.items() if name not in alphas)

    optimizer = torch.optim.AdamW(system.temporal.parameters(), lr=rate)
    for _ in range(steps):
        last = gradients(system)
        optimizer.step()
        system.constrain()
    values = {name: float(value.detach()) for name, value in system.network.named_parameters() if name in alphas}
    falling = {name for name, gradient in alphas.items() if gradient > 0}
    assert 0 < len(falling) < len(alphas)
    for name, value in values.items():
        layer = {key: bool(g.any()) for key, g in last.items() if key.startswith(name.removesuffix("alpha"))}
        learns = [key for key, learning in layer.items() if learning]
        assert len(layer) > 8
        if name in falling:
            assert value == pytest.approx(1 - steps * rate, abs=0.2 * steps * rate) and learns == list(layer)
        else:
            assert value == 1.0 and learns == [name]


def test_alphas_stay_between_the_image_model_and_none_of_it(system: ConsistI2V) -> None:
    alphas = system.temporal.alphas()
    for number, alpha in enumerate(alphas.values()):
        alpha.data.fill_((-0.5, 0.25, 1.5)[number % 3])
    system.constrain()
    assert {float(alpha.detach()) for alpha in alphas.values()} == {0.0, 0.25, 1.0}
    assert all(alpha.requires_grad for alpha in alphas.values())


def test_a_dropped_image_is_the_first_latent_noised_at_t(system: ConsistI2V) -> None:
    """Which is the same as giving that latent; the text goes to the embedding of ""."""
    condition, timesteps = told(system, 3), torch.tensor([20, 400, 950])
    drop = system.drop(condition, image=torch.tensor([True, False, True]), text=torch.tensor([False, True, False]))
    assert drop["without_image"].tolist() == [True, False, True]
    assert torch.equal(drop["prompt_embeds"][1], system.null_embeds[0])
    assert torch.equal(drop["prompt_embeds"][::2], condition["prompt_embeds"][::2])
    abar = system.schedule.alphas_cumprod
    assert abar is not None
    level = abar[timesteps].view(-1, 1, 1, 1, 1)
    noised = level.sqrt() * condition["history"] + (1 - level).sqrt() * condition["history_noise"]
    given = condition | {
        "history": torch.where(drop["without_image"].view(-1, 1, 1, 1, 1), noised.float(), condition["history"])
    }
    given["prompt_embeds"] = drop["prompt_embeds"]
    noisy = randn(3, 3, 4, 8, 8, seed=9)
    expected = system.network(noisy, timesteps, **given)
    torch.testing.assert_close(system.network(noisy, timesteps, **drop), expected, rtol=1e-4, atol=1e-5)
    twice = system.drop(drop, image=torch.tensor([False, True, False]), text=torch.tensor([False] * 3))
    assert twice["without_image"].tolist() == [True, True, True]


def test_the_first_frame_is_normalised_and_not_predicted(system: ConsistI2V) -> None:
    given, text = randn(2, 1, 4, 8, 8), {"prompt_embeds": randn(2, 12, TEXT_WIDTH)}
    condition = system.condition(given, text, noise=randn(2, 1, 4, 8, 8, seed=2))
    assert torch.equal(condition["history"], given * 0.5)
    assert torch.equal(condition["stride"], torch.ones(2))
    out = system.network(randn(2, 3, 4, 8, 8), torch.tensor([5, 6]), **condition)
    assert out.shape == (2, 3, 4, 8, 8)
    with pytest.raises(InputError, match=r"noise: expected \[B, n, C, h, w\], the given frames'.*; got None"):
        system.condition(given, text)


def test_the_stride_is_told_and_must_be_one_of_training(base_folder: Path) -> None:
    """12 frames a second in training: 12, 6, 4 and so on are strides of 1, 2, 3."""
    system = consisti2v(base_folder, stirred=True, max_stride=3)
    system.fps = 12.0
    given, text = randn(3, 1, 4, 8, 8), {"prompt_embeds": randn(3, 12, TEXT_WIDTH)}
    condition = system.condition(given, text, fps=torch.tensor([12.0, 6.0, 4.0]), noise=given)
    assert condition["stride"].tolist() == [1, 2, 3]
    noisy, timesteps = randn(1, 3, 4, 8, 8).expand(3, -1, -1, -1, -1), torch.tensor([500] * 3)
    same = {name: value[:1].expand_as(value) for name, value in condition.items() if name != "stride"}
    out = system.network(noisy, timesteps, **same, stride=condition["stride"])
    assert (out[0] - out[1]).abs().max() > 1e-4 and (out[1] - out[2]).abs().max() > 1e-4
    for fps in (12.0, 8.0, 6.0, 4.0):
        system.check_fps(fps)
    for fps in (3.0, 24.0, 1000.0):
        with pytest.raises(InputError, match=rf"fps={fps:g} is a stride of .*; expected fps of 12, 6, 4, or between"):
            system.check_fps(fps)
    with pytest.raises(InputError, match="fps=2.5 is a stride of 4.8 frames"):
        rollout(system, given[:, 0], text, frames=4, seeds=[0, 1, 2], fps=2.5)


@pytest.mark.parametrize("a", [0.0, 1.0, 1.5])
def test_noise_is_pyocos_mixture(base_folder: Path, a: float) -> None:
    """(a e_shared + e_t) / sqrt(1 + a^2): covariance a^2 / (1 + a^2) between frames, the given one too, variance 1."""
    system = consisti2v(base_folder, noise_alpha=a)
    given = torch.zeros(64, 1, 4, 8, 8)
    noise = system.noise((64, 3, 4, 8, 8), torch.Generator().manual_seed(3), given=given, sampling=False)
    assert noise.shape == (64, 4, 4, 8, 8) and noise.dtype == torch.float32
    frames = noise.double().transpose(0, 1).flatten(1)  # 16384 numbers a frame
    share = a * a / (1 + a * a)
    expected = share + (1 - share) * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(torch.cov(frames), expected, rtol=0, atol=0.04)  # five standard deviations
    across = noise.double().flatten(1)
    assert float((across[0] * across[1]).mean().abs()) < 0.15  # samples share nothing
    generator = torch.Generator().manual_seed(3)
    shared, own = draw((64, 1, 4, 8, 8), generator).double(), draw((64, 4, 4, 8, 8), generator).double()
    mixed = (a * shared + own) / math.sqrt(1 + a * a)
    torch.testing.assert_close(noise.double(), mixed, rtol=0, atol=1e-6)


def test_a_samples_noise_is_the_same_in_any_batch(system: ConsistI2V) -> None:
    given = randn(2, 1, 4, 8, 8)

    def noise(*seeds: int) -> Tensor:
        generators = [frame_generator(seed, 1) for seed in seeds]
        return system.noise((len(seeds), 3, 4, 8, 8), generators, given=given[-len(seeds) :], sampling=True)

    torch.testing.assert_close(noise(7, 8)[1:], noise(8), rtol=0, atol=1e-6)


@pytest.mark.parametrize("moving", [False, True])
def test_sampling_starts_with_the_low_frequencies_of_the_first_frame_or_a_layout(
    base_folder: Path, moving: bool
) -> None:
    """z = add_noise(video, e, t), then IFFT(G FFT(z) + (1 - G) FFT(e)) with the same e."""
    system = consisti2v(base_folder, cutoff=0.4, cutoff_time=0.3, frame_init_timestep=600)
    given, layout = randn(2, 1, 4, 8, 8), randn(2, 4, 4, 8, 8, seed=5)

    def noise(**options: Any) -> Tensor:
        return system.noise((2, 3, 4, 8, 8), seeded(1), given=given, **options).double()

    plain = noise(sampling=False)
    actual = noise(sampling=True, layout=layout if moving else None)
    video = layout.double() if moving else (0.5 * given.double()).expand(-1, 4, -1, -1, -1)
    abar = float(system.schedule.alphas_cumprod[600])  # type: ignore[index]
    noised = math.sqrt(abar) * video + math.sqrt(1 - abar) * plain
    axes = (1, 3, 4)
    time, height, width = (2 * torch.fft.fftfreq(n, dtype=torch.float64) for n in (4, 8, 8))
    square = (0.4 / 0.3 * time)[:, None, None] ** 2 + height[:, None] ** 2 + width**2
    gain = (-square / (2 * 0.4**2)).exp()[:, None]
    mixed = gain * torch.fft.fftn(noised, dim=axes) + (1 - gain) * torch.fft.fftn(plain, dim=axes)
    torch.testing.assert_close(actual, torch.fft.ifftn(mixed, dim=axes).real, rtol=0, atol=5e-6)
    off = consisti2v(base_folder, frame_init=False)
    torch.testing.assert_close(
        off.noise((2, 3, 4, 8, 8), seeded(1), given=given, sampling=True).double(), plain, rtol=0, atol=0
    )


def test_layouts_that_cannot_be_followed_are_refused(base_folder: Path) -> None:
    system = consisti2v(base_folder, frame_init=False)
    given, text = randn(1, 1, 4, 8, 8), {"prompt_embeds": randn(1, 12, TEXT_WIDTH)}
    options: dict[str, Any] = {"seeds": [0], "sampler": Sampler(steps=1)}
    with pytest.raises(InputError, match="layout: the noise follows one by FrameInit, which is off; expected frame_in"):
        rollout(system, given[:, 0], text, frames=4, layout=randn(1, 4, 4, 8, 8), **options)
    for shape in ((1, 3, 4, 8, 8), (1, 4, 4, 8, 7), (4, 4, 8, 8)):
        expected = rf"layout has shape \[{', '.join(map(str, shape))}\]; expected \[1, 4, 4, 8, 8\], a latent a frame"
        with pytest.raises(InputError, match=expected):
            rollout(consisti2v(base_folder), given[:, 0], text, frames=4, layout=randn(*shape), **options)
    with pytest.raises(InputError, match=r"layout has shape .*3, 4, 8, 8.*expected .*4, 4, 8, 8"):
        consisti2v(base_folder).noise(
            (1, 3, 4, 8, 8), seeded(0), given=given, sampling=True, layout=randn(1, 3, 4, 8, 8)
        )


def test_checkpointing_keeps_the_gradients(system: ConsistI2V) -> None:
    check_checkpointing(system)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_network_compiles_whole(system: ConsistI2V, backend: str) -> None:
    check_compiles(system, backend)


@pytest.mark.parametrize("rope", ["all", "reference"])
def test_a_saved_model_predicts_the_same(base_folder: Path, tmp_path: Path, rope: Any) -> None:
    system = consisti2v(base_folder, stirred=True, rope=rope, frames=3, filter="butterworth", max_stride=2)
    system.save(tmp_path / "saved")
    again = load_system(tmp_path / "saved", device="cpu")
    assert isinstance(again, ConsistI2V) and again.config == system.config and again.window == system.window
    condition = told(system, 2)
    inputs = (randn(2, 2, 4, 8, 8), torch.tensor([10, 900]))
    assert torch.equal(again.network(*inputs, **condition), system.network(*inputs, **condition))
    longer = load_system(f"{tmp_path / 'saved'}?frames=6&frame_init=false", device="cpu")
    assert longer.window.length == 6 and longer.config.frame_init is False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frames": 1}, "frames: expected at least 2, got 1"),
        ({"max_stride": 0}, "max_stride: expected at least 1, got 0"),
        ({"start_alpha": 1.5}, "start_alpha: expected 0 to 1, got 1.5"),
        ({"start_alpha": math.nan}, "start_alpha: expected 0 to 1, got nan"),
        ({"noise_alpha": -1.0}, "noise_alpha: expected at least 0, got -1"),
        ({"cutoff": 0.0}, "cutoff: expected a number > 0, got 0"),
        ({"filter_order": 0}, "filter_order: expected at least 1, got 0"),
        ({"frame_init_timestep": -1}, "frame_init_timestep: expected at least 0, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        ConsistI2VConfig(**options)


def test_a_timestep_that_the_noise_has_not_is_refused(base_folder: Path) -> None:
    with pytest.raises(InputError, match="frame_init_timestep: expected 0 to 999.*got 1000"):
        consisti2v(base_folder, frame_init_timestep=1000)


def test_folders_that_do_not_fit_are_refused(base_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    consisti2v(base_folder).save(saved)
    with pytest.raises(InputError, match="rope: the model was trained with 'all'; expected that, got 'reference'"):
        load_system(saved, ConsistI2VConfig(rope="reference"), device="cpu")
    with pytest.raises(InputError, match="is of kind consisti2v; expected emu-video"):
        load_system(saved, EmuVideoConfig(), device="cpu")
    with pytest.raises(InputError, match=r"system: .*filter"):
        load_system(f"{saved}?filter=box", device="cpu")
    broken = Path(shutil.copytree(saved, tmp_path / "broken"))
    shutil.rmtree(broken / "temporal")
    with pytest.raises(InputError, match=r"model folder .*broken' lacks temporal/.*expected the whole folder"):
        load_system(broken, device="cpu")
    load_system("tiny", ConsistI2VConfig(), device="cpu").save(tmp_path / "other")
    swapped = Path(shutil.copytree(saved, tmp_path / "swapped"))
    shutil.rmtree(swapped / "temporal")
    shutil.copytree(tmp_path / "other" / "temporal", swapped / "temporal")
    with pytest.raises(InputError, match="the temporal layers follow .* from one model$"):
        load_system(swapped, device="cpu")
    mixed = Path(shutil.copytree(saved, tmp_path / "mixed"))
    config = json.loads((mixed / "temporal" / "config.json").read_text())
    config["follows"]["down_blocks.5.resnets.0"] = ["resnet", 16]
    (mixed / "temporal" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="weights of temporal in model .*mixed.* lack .*down_blocks-5-resnets-0"):
        load_system(mixed, device="cpu")


def test_stirring_reaches_everything(system: ConsistI2V) -> None:
    """The tests above say nothing about a weight without effect: every one has a gradient here."""
    stir(system.unet.class_embedding)
    for alpha in system.temporal.alphas().values():
        alpha.data.fill_(0.4)
    dead = [name for name, gradient in gradients(system).items() if not bool(gradient.any())]
    assert dead == []
