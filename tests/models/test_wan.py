"""Wan against diffusers' own pipeline, on tiny random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from video_models import randn, stir

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_shapes, load_system
from contrastive_i2v.models.wan import Wan, WanConfig
from contrastive_i2v.pipeline import ImageToVideoPipeline
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout

FORMS = ("channels", "clean-latent")
PROMPTS = ["a red ball &amp; a wall", "the  green square"]
SAMPLER = Sampler(steps=3, guidance_scale=4.0, image_guidance_scale=1.0)


def wan(form: str, **options: Any) -> Wan:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        system = Wan.random(WanConfig(image_condition=form, **options))  # type: ignore[arg-type]
        stir(system.transformer, by=0.05)
    return system.to("cpu", torch.float32)


@pytest.fixture(scope="module", params=FORMS)
def system(request: pytest.FixtureRequest) -> Wan:
    return wan(request.param)


@pytest.fixture(scope="module")
def pipeline(system: Wan, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("wan")
    system.save(folder)
    pipeline = diffusers.WanImageToVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def of(image: Image.Image) -> Tensor:
    """[1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_text_is_the_pipelines(system: Wan, pipeline: Any) -> None:
    text = system.encode_text(PROMPTS)
    expected, negative = pipeline.encode_prompt(PROMPTS, max_sequence_length=16)
    close(text["prompt_embeds"], expected)
    close(system.null_text["prompt_embeds"].expand(2, -1, -1), negative)
    assert text["prompt_mask"].sum(1).tolist() == [10, int((expected[1].abs().sum(-1) > 0).sum())]


@torch.no_grad()
def test_the_encoded_condition_is_the_pipelines(system: Wan, pipeline: Any, image: Image.Image) -> None:
    pixels = of(image)
    given = system.codec.sample(system.codec.encode(pixels[:, None]))
    noise = system.noise((1, len(system.window.generated), 4, 8, 8), torch.Generator(), given=given, sampling=True)
    seen = system.encode_image(pixels[:, None], 3) if system.sees_pixels else None
    condition = system.condition(given, system.encode_text(PROMPTS[:1]), noise=noise[:, :1], image=seen)
    latents = pipeline.prepare_latents(pixels, 1, 4, 64, 64, 9, torch.float32, "cpu", torch.Generator())
    if not system.sees_pixels:
        close(condition["history"].transpose(1, 2), latents[1])
        return
    close(condition["known"].transpose(1, 2), latents[1])
    close(condition["image_embeds"], pipeline.encode_image(image))


@torch.no_grad()
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
@pytest.mark.parametrize("negative", ["", "blurred"])
def test_a_sampled_video_is_the_pipelines(
    system: Wan, pipeline: Any, image: Image.Image, prompts: list[str], negative: str
) -> None:
    size = len(prompts)
    pixels = of(image).expand(size, -1, -1, -1)
    first = system.codec.sample(system.codec.encode(pixels[:, None]))[:, 0]
    negatives = system.encode_text([negative] * size)
    video = rollout(
        system,
        first,
        system.encode_text(prompts),
        frames=3,
        seeds=[1, 2][:size],
        sampler=SAMPLER,
        pixels=pixels,
        negative=negatives if negative else None,
    )
    # the pipeline's noise is the rollout's
    seen: list[Tensor] = []
    noise = system.noise

    def keep(*args: Any, **options: Any) -> Tensor:
        seen.append(noise(*args, **options))
        return seen[-1]

    system.noise = keep  # type: ignore[method-assign]
    try:
        rollout(system, first, system.encode_text(prompts), frames=3, seeds=[1, 2][:size], sampler=SAMPLER)
    finally:
        del system.noise
    options = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 3, "guidance_scale": 4.0}
    options |= {"max_sequence_length": 16, "latents": seen[0].transpose(1, 2), "negative_prompt": negative}
    expected = pipeline(image=image, prompt=prompts, output_type="latent", **options).frames.transpose(1, 2)
    close(video[:, 1:], expected[:, 1:])
    decoded = system.codec.decode(expected)
    frames = pipeline(image=image, prompt=prompts, output_type="pt", **options).frames
    close((decoded + 1) / 2, frames)


@torch.no_grad()
def test_one_step_and_its_null_branches(system: Wan) -> None:
    """Guidance towards the image: the null branches drop the image and the text of the rows that are said."""
    given, length = randn(2, 1, 4, 8, 8), system.window.length
    noise = system.noise((2, len(system.window.generated), 4, 8, 8), torch.Generator(), given=given, sampling=True)
    seen = system.encode_image(randn(2, 1, 3, 64, 64).clamp(-1, 1), length) if system.sees_pixels else None
    condition = system.condition(given, system.encode_text(PROMPTS), noise=noise[:, :1], image=seen)
    noisy, timesteps = noise[:, -len(system.window.generated) :], torch.tensor([800.0, 300.0])
    some = torch.tensor([True, False])
    dropped = system.drop(condition, image=some, text=~some)
    actual = system.network(noisy, timesteps, **dropped)
    whole = system.network(noisy, timesteps, **condition)
    assert (actual - whole).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-4
    null = system.drop(condition, image=~some, text=some)
    again = system.drop(dropped, image=~some, text=some)
    for name in condition:
        expected = torch.where(some.view(-1, *[1] * (condition[name].dim() - 1)), dropped[name], condition[name])
        if name in ("known", "image_embeds", "without_image"):
            assert torch.equal(dropped[name], expected)
        assert again[name].shape == null[name].shape
    if not system.sees_pixels:  # without the image it is a text-to-video model: all frames are noise at t
        clip = torch.cat([system.schedule.add_noise(condition["history"], noise[:, :1], timesteps), noisy], dim=1)
        out = system.transformer(clip.transpose(1, 2), timesteps, dropped["prompt_embeds"], return_dict=False)[
            0
        ].transpose(1, 2)
        torch.testing.assert_close(actual[0], out[0, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_saved_and_loaded_it_is_the_same(form: str, tmp_path: Path, image: Image.Image) -> None:
    system = wan(form)
    system.save(tmp_path)
    loaded = load_system(tmp_path, device="cpu")
    assert isinstance(loaded, Wan) and loaded.config == system.config and loaded.fingerprint == system.fingerprint
    videos = [
        ImageToVideoPipeline(one)(image, PROMPTS[0], num_frames=9, num_inference_steps=2, seeds=[3], output_type="pt")
        for one in (system, loaded)
    ]
    assert torch.equal(videos[0].frames, videos[1].frames) and videos[0].frames.shape == (1, 9, 3, 64, 64)
    (tmp_path / "system.json").unlink()
    bare = load_system(tmp_path, WanConfig(frames=9, text_length=16), device="cpu")
    assert bare.config == system.config


def test_the_text_encoder_keeps_a_precision_of_its_own(tmp_path: Path) -> None:
    whole, system = wan("channels"), wan("channels", text_dtype="bfloat16")
    system.save(tmp_path)
    loaded = load_system(tmp_path, device="cpu", dtype=torch.float32)
    assert loaded.config == system.config and loaded.fingerprint == system.fingerprint != whole.fingerprint
    dtypes = {name: next(part.parameters()).dtype for name, part in loaded.parts().items()}
    assert dtypes.pop("text_encoder") == torch.bfloat16 and set(dtypes.values()) == {torch.float32}
    text, exact = loaded.encode_text(PROMPTS[:1])["prompt_embeds"], whole.encode_text(PROMPTS[:1])["prompt_embeds"]
    assert text.dtype == torch.bfloat16
    assert 0 < (text.float() - exact).norm() < 0.02 * exact.norm()
    told = load_system(tmp_path, device="cpu", dtype={"text_encoder": torch.float32})
    assert told.encode_text(PROMPTS[:1])["prompt_embeds"].dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_windows_follow_each_other_through_the_last_frames_encoded_anew(form: str) -> None:
    past = 1 if form == "channels" else 2
    system = wan(form, past_frames=past)
    first, text = randn(2, 4, 8, 8), system.encode_text(PROMPTS)
    sampler, seeds = Sampler(steps=2, guidance_scale=1.0, image_guidance_scale=1.0), [1, 2]
    told: list[tuple[Tensor, Any]] = []
    condition = system.condition

    def keep(given: Tensor, *args: Any, **options: Any) -> Any:
        told.append((given, options["image"]))
        return condition(given, *args, **options)

    system.condition = keep  # type: ignore[method-assign]
    video = rollout(system, first, text, frames=6, seeds=seeds, sampler=sampler)
    assert video.shape == (2, 6, 4, 8, 8)
    shorter = rollout(system, first, text, frames=3, seeds=seeds, sampler=sampler)
    assert torch.equal(video[:, :3], shorter)
    assert [given.shape[1] for given, _ in told[:3]] == ([1, 1, 1] if past == 1 else [1, 2, 2])
    run = system.codec.decode(video[:, :3])[:, -(1 + 4 * (past - 1)) :]
    torch.testing.assert_close(told[1][0], system.codec.sample(system.codec.encode(run)), rtol=1e-4, atol=1e-4)
    if form == "channels":
        expected = system.encode_image(run, 3)
        for name, value in expected.items():
            at_most = 1e-4 if name == "image_latents" else 1e-2  # CLIP's pixels have 256 levels: rounding may differ
            torch.testing.assert_close(told[1][1][name], value, rtol=1e-4, atol=at_most)


def test_a_text_to_video_model_grows_and_says_the_same_at_first(tmp_path: Path) -> None:
    grown_from = wan("clean-latent")
    grown_from.save(tmp_path)
    (tmp_path / "system.json").unlink()
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"expand_timesteps": true', '"expand_timesteps": false'))
    system = load_system(tmp_path, WanConfig(frames=9, text_length=16), device="cpu")
    assert system.sees_pixels and system.added == ("transformer.patch_embedding",)
    noisy, known, timesteps = randn(1, 3, 4, 8, 8), randn(1, 3, 8, 8, 8), torch.tensor([500.0])
    text = system.encode_text(PROMPTS[:1])
    actual = system.network(noisy, timesteps, known=known, **text)
    expected = grown_from.transformer(noisy.transpose(1, 2), timesteps, text["prompt_embeds"], return_dict=False)[
        0
    ].transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    either = load_system(tmp_path, WanConfig(frames=9, image_condition="clean-latent"), device="cpu")
    assert not either.sees_pixels


@pytest.mark.parametrize("form", FORMS)
def test_gradient_checkpointing_changes_no_gradient(form: str) -> None:
    system, found = wan(form), []
    given = randn(1, 1, 4, 8, 8)
    noise = system.noise((1, len(system.window.generated), 4, 8, 8), torch.Generator(), given=given, sampling=False)
    seen = system.encode_image(torch.zeros(1, 1, 3, 64, 64), 3) if system.sees_pixels else None
    condition = system.condition(given, system.encode_text(PROMPTS[:1]), noise=noise[:, :1], image=seen)
    noisy = noise[:, -len(system.window.generated) :]
    for _ in range(2):
        system.network.train().zero_grad()
        system.network(noisy, torch.tensor([500.0]), **condition).square().mean().backward()
        found.append([p.grad.clone() for p in system.network.parameters() if p.grad is not None])
        system.network.enable_gradient_checkpointing()
    assert len(found[0]) == len(found[1]) > 10
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"frames=10: .* 1 \+ a multiple of 4, the nearest is 9"):
        wan("channels", frames=10)
    with pytest.raises(InputError, match="past_frames, frame_timesteps: with image_condition=channels"):
        wan("channels", past_frames=2)
    system = wan("channels")
    with pytest.raises(InputError, match="multiples of 16, the nearest is 48x64"):
        system.check_size((50, 64))
    with pytest.raises(InputError, match="F = 1 . a multiple of 4"):
        system.codec.encode(torch.zeros(1, 4, 3, 64, 64))
    system.save(tmp_path)
    with pytest.raises(InputError, match="takes the given frame by channels"):
        load_system(tmp_path, replace(system.config, image_condition="clean-latent"))
    (tmp_path / "text_encoder" / "config.json").unlink()
    with pytest.raises(InputError, match="lacks text_encoder/config.json; expected what save_pretrained"):
        load_system(tmp_path)
    (tmp_path / "transformer_2").mkdir()
    with pytest.raises(InputError, match="two transformers"):
        load_system(tmp_path)


def test_a_transformer_of_other_inputs_is_refused(tmp_path: Path) -> None:
    system = wan("channels")
    other = {**system.transformer.config, "pos_embed_seq_len": 10, "_use_default_values": []}
    system.transformer = diffusers.WanTransformer3DModel.from_config(other)
    system.save(tmp_path)
    with pytest.raises(InputError, match="expected in_channels 4 or 12, out_channels 4, square patches .* None"):
        load_system(tmp_path)


def test_a_hub_id_is_known_by_its_transformer_and_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's functions are replaced by ones that serve a folder; patterns are the hub's own."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    wan("clean-latent").save(tmp_path / "there")
    (tmp_path / "there" / "system.json").unlink()
    (tmp_path / "there" / "another-size.safetensors").write_bytes(b"gigabytes")

    def snapshot(repo: str, *, allow_patterns: list[str]) -> str:
        assert repo == "owner/wan"
        files = [str(one.relative_to(tmp_path / "there")) for one in (tmp_path / "there").rglob("*") if one.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cache" / file).write_bytes((tmp_path / "there" / file).read_bytes())
        return str(tmp_path / "cache")

    def download(repo: str, file: str) -> str:
        if not (tmp_path / "there" / file).exists():
            raise EntryNotFoundError("not there")
        return str(tmp_path / "there" / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("contrastive_i2v.models.reach", lambda source: source)
    shapes = load_shapes("owner/wan", WanConfig(frames=9))
    assert not list((tmp_path / "cache").rglob("*.safetensors")) and shapes.config.kind == "wan"
    system = load_system("owner/wan", device="cpu")
    assert isinstance(system, Wan) and not system.sees_pixels
    assert not (tmp_path / "cache" / "another-size.safetensors").exists()
