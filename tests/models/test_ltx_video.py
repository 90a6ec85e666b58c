"""LTX-Video against diffusers' own pipeline, on tiny random weights, in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from video_models import randn, stir

from contrastive_i2v.cli.calibrate import ClipsOptions, calibrate_model
from contrastive_i2v.data.examples import Example
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.calibration import CalibrationConfig
from contrastive_i2v.models import load_shapes, load_system
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.models.ltx_video import LTXVideo, LTXVideoConfig
from contrastive_i2v.models.video_transformer import Parts
from contrastive_i2v.randomness import frame_generator, seeded
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout
from contrastive_i2v.sampling.linear_steps import linear_steps
from contrastive_i2v.system import DESCRIPTION
from contrastive_i2v.training.config import OptimizerConfig, TimestepsConfig, TrainConfig
from contrastive_i2v.training.inputs import make_inputs
from contrastive_i2v.training.trainer import Trainer

PROMPTS = ["a red ball", "the green square glides up"]
SAMPLER = Sampler(steps=3, guidance_scale=3.0, image_guidance_scale=1.0)


def ltx(vae: dict[str, Any] | None = None, **options: Any) -> LTXVideo:
    """A tiny one of which every parameter has a say; `vae` changes the config of its autoencoder."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        system = LTXVideo.random(LTXVideoConfig(**options))
        if vae is not None:
            known = {name: value for name, value in system.vae.config.items() if not name.startswith("_")}
            changed: Any = diffusers.AutoencoderKLLTXVideo(**known | vae)
            stir(changed, by=0.05)
            parts = Parts(changed, system.text_encoder, system.tokenizer, system.transformer)
            system = LTXVideo(parts, system.scheduler, system.config)
    stir(system.transformer, by=0.05)
    return system.to("cpu", torch.float32)


def pipeline_of(system: LTXVideo) -> Any:
    pipeline = diffusers.LTXImageToVideoPipeline(**system.pipeline_parts())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def system() -> LTXVideo:
    return ltx()


@pytest.fixture(scope="module")
def folder(system: LTXVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ltx")
    system.save(folder)
    return folder


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[tuple[dict[str, Any], Tensor]]]:
    """What a module is called with, by name, and its first result, call after call."""
    calls: list[tuple[dict[str, Any], Tensor]] = []
    names = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((dict(zip(names, args, strict=False)) | kwargs, output[0]))

    hook = module.register_forward_hook(keep, with_kwargs=True)
    yield calls
    hook.remove()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def frames_of(system: LTXVideo, size: int = 2) -> Tensor:
    """[B, C, h, w], random still frames, encoded."""
    pixels = randn(size, 1, 3, 64, 64).clamp(-1, 1)
    return system.codec.sample(system.codec.encode(pixels))[:, 0]


def packed(clip: Tensor) -> Tensor:
    """[B, T, C, h, w] -> the pipeline's tokens."""
    tokens: Tensor = diffusers.LTXImageToVideoPipeline._pack_latents(clip.transpose(1, 2))
    return tokens


def start_of(system: LTXVideo, first: Tensor, seeds: list[int]) -> Tensor:
    """[B, T, C, h, w], what a rollout's first window starts from."""
    count = system.window.length - 1
    generators = [frame_generator(seed, 1) for seed in seeds]
    shape = (len(first), count, *first.shape[1:])
    noise = system.noise(shape, generators, given=first[:, None], sampling=True)
    return torch.cat([system.codec.normalize(first)[:, None], noise[:, 1:]], dim=1)


@torch.no_grad()
def test_text_is_the_pipelines(system: LTXVideo) -> None:
    embeds, mask, null, null_mask = pipeline_of(system).encode_prompt(PROMPTS, max_sequence_length=16)
    text = system.encode_text(PROMPTS)
    close(text["prompt_embeds"], embeds)
    assert torch.equal(text["prompt_mask"], mask) and 2 < mask.sum() < mask.numel()
    close(system.null_text["prompt_embeds"].expand(2, -1, -1), null)
    assert torch.equal(system.null_text["prompt_mask"].expand(2, -1), null_mask)


@torch.no_grad()
def test_the_encoded_condition_is_the_pipelines() -> None:
    """The pipeline draws from the posterior; here it has no width."""
    system = ltx()
    system.vae.encoder.conv_out.conv.bias[-1] = -60
    pixels = randn(2, 3, 64, 64).clamp(-1, 1)
    latents, mask = pipeline_of(system).prepare_latents(
        pixels, 2, 4, 64, 64, 9, torch.float32, "cpu", torch.Generator().manual_seed(0)
    )
    given = system.codec.sample(system.codec.encode(pixels[:, None]))
    condition = system.condition(given, system.encode_text(PROMPTS), noise=randn(2, 1, 4, 8, 8))
    close(packed(condition["history"]), latents[:, mask[0] == 1])
    assert condition["rate"].tolist() == [25, 25]


@torch.no_grad()
@pytest.mark.parametrize(("negative", "fps"), [("", 25), ("blurred", 8)])
def test_every_step_and_the_video_are_the_pipelines(system: LTXVideo, negative: str, fps: int) -> None:
    pipeline, first, seeds = pipeline_of(system), frames_of(system), [1, 2]
    with calls_of(system.transformer) as ours:
        video = rollout(
            system,
            first,
            system.encode_text(PROMPTS),
            frames=3,
            seeds=seeds,
            sampler=SAMPLER,
            fps=None if fps == system.fps else fps,
            negative=system.encode_text([negative] * 2) if negative else None,
        )
    options = {"height": 64, "width": 64, "num_frames": 9, "frame_rate": fps, "num_inference_steps": 3}
    options |= {"guidance_scale": 3.0, "negative_prompt": [negative] * 2, "max_sequence_length": 16}
    options |= {"latents": packed(start_of(system, first, seeds))}
    with calls_of(system.transformer) as theirs:
        latents = pipeline(prompt=PROMPTS, output_type="latent", **options).frames
    assert len(ours) == len(theirs) == 3
    for (told, actual), (told_them, expected) in zip(ours, theirs, strict=True):
        close(actual, expected.roll(2, dims=0))  # the pipeline has the negative prompt first
        torch.testing.assert_close(told["timestep"], told_them["timestep"].roll(2, dims=0), rtol=1e-6, atol=0)
    close(packed(video), latents)
    close(system.codec.decode(video) / 2 + 0.5, pipeline(prompt=PROMPTS, output_type="pt", **options).frames)


@torch.no_grad()
def test_a_decoder_told_a_timestep_decodes_as_in_the_pipeline() -> None:
    system = ltx({"timestep_conditioning": True})
    start = start_of(system, frames_of(system), [1, 2])
    options = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "latents": packed(start)}
    options |= {"prompt": PROMPTS, "max_sequence_length": 16}
    pipeline = pipeline_of(system)
    latents = pipeline._unpack_latents(pipeline(output_type="latent", **options).frames, 3, 8, 8).transpose(1, 2)
    with calls_of(system.vae.decoder) as calls:
        decoded = system.codec.decode(latents)
    close(decoded / 2 + 0.5, pipeline(output_type="pt", **options).frames)
    assert calls[0][0]["encoder_hidden_states"].tolist() == [0, 0]


@torch.no_grad()
def test_a_decoder_that_adds_noise_adds_the_same_and_leaves_the_generator_alone() -> None:
    system = ltx({"timestep_conditioning": True, "decoder_inject_noise": (True,) * 3})
    latents, state = randn(2, 3, 4, 8, 8), torch.random.get_rng_state()
    decoded = system.codec.decode(latents)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        assert torch.equal(system.codec.decode(latents), decoded)
    close(system.codec.decode(latents[1:]), decoded[1:])
    own = system.codec.denormalize(latents).transpose(1, 2)
    other = system.vae.decode(own, torch.zeros(2)).sample.transpose(1, 2)
    assert (other - decoded).abs().max() > 1e-4


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("terminal", [0.1, None])
def test_the_schedule_is_the_pipelines_as_numbers(system: LTXVideo, dynamic: bool, terminal: float | None) -> None:
    """Euler's steps of the pipeline's sigmas, for a window of 3 x 8 x 8 tokens."""
    changes = {"use_dynamic_shifting": dynamic, "shift": 2.0, "shift_terminal": terminal}
    own = ltx()
    own.scheduler = type(own.scheduler).from_config({**own.scheduler.config, **changes, "_use_default_values": []})
    steps = linear_steps(own.scheduler, 5, set_timesteps=lambda one, count: own.set_timesteps(one, count, (3, 8, 8)))
    assert steps is not None
    share = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)
    shift = own.timestep_shift((3, 8, 8))
    mu = 0.95 + (2.05 - 0.95) * (192 - 1024) / (4096 - 1024)
    assert shift == pytest.approx(torch.tensor(mu).exp().item() if dynamic else 2.0)
    sigmas = shift * share / (1 + (shift - 1) * share)
    if terminal:
        sigmas = 1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1])
    torch.testing.assert_close(steps.timesteps.double(), 1000 * sigmas, rtol=1e-5, atol=0)
    following = torch.cat([sigmas[1:], torch.zeros(1, dtype=torch.float64)])
    expected = torch.stack([torch.ones(5, dtype=torch.float64), following - sigmas], dim=1)
    torch.testing.assert_close(torch.tensor(steps.scales, dtype=torch.float64), expected, rtol=1e-5, atol=1e-6)
    if terminal:
        with pytest.raises(InputError, match="steps=1: .*shift_terminal.*expected 2"):
            own.set_timesteps(own.scheduler, 1, (3, 8, 8))


@torch.no_grad()
def test_windows_follow_each_other_with_as_many_given_frames_as_there_are() -> None:
    system = ltx(past_frames=2)
    first, text = frames_of(system), system.encode_text(PROMPTS)
    sampler = replace(SAMPLER, steps=2, guidance_scale=1.0)
    with calls_of(system.transformer) as calls:
        video = rollout(system, first, text, frames=5, seeds=[1, 2], sampler=sampler)
    assert video.shape == (2, 5, 4, 8, 8)
    assert torch.equal(video[:, :3], rollout(system, first, text, frames=3, seeds=[1, 2], sampler=sampler))
    clean = [(told["timestep"].unflatten(1, (3, 64)) == 0).all(-1).sum(1).tolist() for told, _ in calls]
    assert clean == [[1, 1]] * 2 + [[2, 2]] * 4
    run = system.codec.decode(video[:, :3])[:, -5:]
    given = system.codec.normalize(system.codec.sample(system.codec.encode(run)))
    close(calls[2][0]["hidden_states"][:, :128], packed(given))


@torch.no_grad()
def test_history_guidance_noises_the_given_frames_and_says_so() -> None:
    system = ltx(past_frames=2, frame_timesteps=True)
    first, text = frames_of(system), system.encode_text(PROMPTS)
    videos = []
    for level in (0.25, 0.0):
        sampler = replace(SAMPLER, steps=2, image_guidance_scale=2.0, history_level=level)
        with calls_of(system.transformer) as calls:
            videos.append(rollout(system, first, text, frames=4, seeds=[1, 2], sampler=sampler))
        told = calls[-1][0]["timestep"].unflatten(1, (3, 64))
        assert all(len(frame.unique()) == 1 for row in told for frame in row)
        # everything, given frames without text, these noised, neither: two rows each
        history = [0, 0, 0, 0, *([250, 250] if level else []), 1000, 1000]
        assert told[:, 0, 0].tolist() == told[:, 1, 0].tolist() == history
    assert bool(videos[0].isfinite().all()) and not torch.equal(*videos)


FLOW = TimestepsConfig(distribution="logit-normal", shift=None)


def test_timesteps_shift_with_the_tokens(system: LTXVideo) -> None:
    many, few = (
        system.schedule.sample_timesteps(
            4000, seeded(1), distribution="logit-normal", shift=system.timestep_shift(latent)
        )
        for latent in ((16, 16, 16), (1, 32, 32))
    )
    # the logit of the median is mu
    for drawn, mu in ((many, 2.05), (few, 0.95)):
        assert torch.logit(drawn.median() / 1000).item() == pytest.approx(mu, abs=0.06)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    system = ltx()
    batch = Example(
        raw=torch.cat([randn(4, 3, 4, 8, 8), torch.full((4, 3, 4, 8, 8), -2.0)], dim=2),
        present=torch.ones(4, 3, dtype=torch.bool),
        text=system.encode_text(PROMPTS * 2),
        fps=torch.tensor([25.0, 12.5, 8.0, 25.0]),
        group=torch.arange(4),
    )
    inputs = make_inputs(
        batch, system, schedule=system.schedule, timesteps=FLOW, conditioning_dropout=0.2, generator=seeded(3)
    )
    assert torch.equal(inputs.condition["rate"], batch.fps)
    found = []
    for _ in range(2):
        system.network.train().zero_grad()
        system.network(inputs.noisy_latents, inputs.timesteps, **inputs.condition).square().mean().backward()
        found.append({name: one.grad for name, one in system.network.named_parameters() if one.grad is not None})
        system.network.enable_gradient_checkpointing()
    assert len(found[0]) == len(list(system.network.parameters()))
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-4, atol=1e-6)
    assert all(bool(one.any()) for one in found[0].values())


def test_saved_and_loaded_it_is_the_same(system: LTXVideo, folder: Path) -> None:
    loaded = load_system(folder, device="cpu")
    assert isinstance(loaded, LTXVideo) and loaded.config == system.config
    assert (loaded.fingerprint, loaded.size, loaded.fps) == (system.fingerprint, (64, 64), 25)
    loaded.vae.latents_mean += 1
    del loaded.fingerprint
    assert loaded.fingerprint != system.fingerprint
    loaded = load_system(folder, device="cpu")
    first, options = frames_of(system), {"frames": 3, "seeds": [1, 2], "sampler": SAMPLER}
    videos = [rollout(one, first, one.encode_text(PROMPTS), **options) for one in (system, loaded)]
    assert torch.equal(*videos) and torch.equal(*(one.codec.decode(videos[0]) for one in (system, loaded)))
    pipeline = diffusers.LTXImageToVideoPipeline.from_pretrained(folder)
    for name, value in pipeline.transformer.state_dict().items():
        assert torch.equal(value, system.transformer.state_dict()[name])
    assert torch.equal(pipeline.vae.latents_std, system.vae.latents_std)
    for name, value in system.scheduler.config.items():
        assert name.startswith("_") or pipeline.scheduler.config[name] == value, name
    shapes = load_shapes(folder)
    assert shapes.device.type == "meta" and shapes.codec.encode(torch.zeros(1, 9, 3, 64, 64)).shape == (1, 3, 8, 8, 8)


def test_bad_input_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"frames=10: .* ltx-video .* 1 \+ a multiple of 4, the nearest is 9"):
        ltx(frames=10)
    with pytest.raises(InputError, match="ltx-video takes multiples of 8, the nearest is 48x64"):
        ltx().check_size((50, 64))
    with pytest.raises(InputError, match="1 . a multiple of 4, and H and W multiples of 8"):
        ltx().codec.encode(torch.zeros(1, 10, 3, 64, 64))
    for part, changes, message in (
        ("transformer", {"_class_name": "WanTransformer3DModel"}, "of class WanTransformer3DModel; expected LTXVideo"),
        ("transformer", {"patch_size_t": 2}, "patch_size=1, patch_size_t=2; expected 4, 4, 1 and 1"),
        ("text_encoder", {"d_model": 16}, "takes text of width 32, its text encoder has 16"),
        ("text_encoder", None, "lacks text_encoder/config.json; expected what save_pretrained"),
    ):
        copy = tmp_path / message[:9]
        for file in [path for path in folder.rglob("*") if path.is_file() and path.name != DESCRIPTION]:
            target = copy / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
        file = copy / part / "config.json"
        config = json.loads(file.read_text())
        file.unlink()
        if changes is not None:
            file.write_text(json.dumps(config | changes))
        with pytest.raises(InputError, match=message) as error:
            load_shapes(copy, LTXVideoConfig())
        assert "\n" not in str(error.value)


@pytest.fixture
def config(train_config: TrainConfig, folder: Path) -> TrainConfig:
    """Two steps of LoRA at a rate that shows, windows of nine frames of 16 x 16 pixels."""
    return replace(
        train_config,
        model=str(folder),
        system=LTXVideoConfig(),
        steps=2,
        ema_decay=0.0,
        timesteps=FLOW,
        data=replace(train_config.data, frames=FramesConfig(frame_rate=25.0, offset_std=0.0)),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=0),
        lora=AdapterConfig(rank=2, alpha=3),
    )


def test_an_adapter_that_training_wrote_changes_the_pipeline_as_it_changed_the_model(
    system: LTXVideo, config: TrainConfig
) -> None:
    trainer = Trainer(config)
    adapter = trainer.run()
    trained = trainer.system
    assert isinstance(trained, LTXVideo)
    pipeline = diffusers.LTXImageToVideoPipeline.from_pretrained(config.model)
    pipeline.set_progress_bar_config(disable=True)
    first, seeds = frames_of(system), [1, 2]
    options = {"prompt": PROMPTS, "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 3}
    options |= {"latents": packed(start_of(system, first, seeds)), "max_sequence_length": 16, "output_type": "latent"}
    before = pipeline(**options).frames
    pipeline.load_lora_weights(adapter)
    after = pipeline(**options).frames
    assert (after - before).abs().max() > 1e-2
    for one in (trained.to("cpu"), load_system(adapter, device="cpu")):
        video = rollout(one, first, one.encode_text(PROMPTS), frames=3, seeds=seeds, sampler=SAMPLER)
        close(packed(video), after)


def test_it_is_calibrated_on_whole_latent_frames(clips: Path, tmp_path: Path) -> None:
    """Predictions ten times too large: the scale becomes small, and the slope stays within its bounds."""
    system = ltx()
    system.size, system.sampler = (16, 16), replace(SAMPLER, steps=2, guidance_scale=1.0)
    with torch.no_grad():
        for parameter in system.transformer.proj_out.parameters():
            parameter *= 10
    system.save(tmp_path / "model")
    data = ClipsOptions(path=clips / "train", frames=8)
    options = {"config": CalibrationConfig(steps=(2,)), "command": "calibrate"}
    found = calibrate_model(system, tmp_path / "model", data, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert len(found.error_by_frame["chosen"]) == 1 and found.clips == 6
    assert system.sampler.prediction_scale < 0.5
    slopes = [one.sampler.prediction_slope / one.sampler.prediction_scale for one in found.trials]
    assert max(slopes) < 2 and min(slopes) > -2
