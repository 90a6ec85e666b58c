"""Loading, converting, saving and running the parts of InstructPix2Pix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import autoencoder, load_system, read_description
from contrastive_i2v.models.instruct_pix2pix import InstructPix2Pix, InstructPix2PixConfig


def _edit_config(folder: Path, part: str, **changes: Any) -> None:
    file = folder / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _run_pipeline(pipeline: Any, noise: torch.Tensor, image_latents: torch.Tensor) -> torch.Tensor:
    result = pipeline(
        prompt=["a red ball rolls"],
        image=image_latents,
        latents=noise,
        num_inference_steps=2,
        output_type="latent",
    )
    return result.images


def test_conversion_starts_at_the_base_model(base_folder: Path, build_pipeline: Callable[..., Any]) -> None:
    base = build_pipeline(in_channels=4).unet
    model = load_system(base_folder)
    noisy, image_latents = torch.randn(2, 3, 4, 8, 8)
    timesteps = torch.tensor([3, 500, 999])
    prompt_embeds = torch.randn(3, 12, 16)

    with torch.no_grad():
        expected = base(noisy, timesteps, encoder_hidden_states=prompt_embeds).sample
        actual = model.network(noisy[:, None], timesteps, image_latents, prompt_embeds)[:, 0]

    assert base.conv_in.bias.abs().sum() > 0
    torch.testing.assert_close(model.unet.conv_in.bias, base.conv_in.bias, rtol=0, atol=0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert model.unet.config.in_channels == 8
    assert type(model.scheduler).__name__ == "DDIMScheduler"
    assert model.scheduler.config.beta_schedule == "scaled_linear" and not model.scheduler.config.clip_sample


def test_new_channels_learn(base_folder: Path) -> None:
    model = load_system(base_folder)
    model.network(
        torch.randn(1, 1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 4, 8, 8), torch.randn(1, 12, 16)
    ).square().sum().backward()
    assert model.unet.conv_in.weight.grad[:, 4:].abs().sum() > 0
    assert all(
        p.grad is None and not p.requires_grad for p in (*model.vae.parameters(), *model.text_encoder.parameters())
    )


def test_the_network_concatenates_noisy_then_image(model: InstructPix2Pix) -> None:
    noisy, image_latents = torch.randn(2, 2, 4, 8, 8)
    prompt_embeds = torch.randn(2, 12, 16)
    with torch.no_grad():
        expected = model.unet(torch.cat([noisy, image_latents], dim=1), 7, encoder_hidden_states=prompt_embeds).sample
        actual = model.network(noisy[:, None], torch.tensor([7, 7]), image_latents, prompt_embeds)
    assert actual.shape == (2, 1, 4, 8, 8)
    torch.testing.assert_close(actual[:, 0], expected)


def test_converted_then_saved_opens_in_diffusers(base_folder: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    model = load_system(base_folder)
    with torch.no_grad():
        model.unet.conv_in.weight[:, 4:].normal_()
    model.save(tmp_path / "saved")

    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    assert index["safety_checker"] == [None, None] and index["feature_extractor"] == [None, None]
    assert not list((tmp_path / "saved").rglob("*.bin")) and len(list((tmp_path / "saved").rglob("*.safetensors"))) == 3

    opened = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "saved")
    opened.set_progress_bar_config(disable=True)
    ours = StableDiffusionInstructPix2PixPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    ours.set_progress_bar_config(disable=True)
    noise, image_latents = torch.randn(2, 1, 4, 8, 8)
    expected = _run_pipeline(ours, noise, image_latents)
    torch.testing.assert_close(_run_pipeline(opened, noise, image_latents), expected, rtol=0, atol=0)

    again = load_system(tmp_path / "saved")
    torch.testing.assert_close(again.unet.conv_in.weight, model.unet.conv_in.weight, rtol=0, atol=0)
    assert again.fingerprint == model.fingerprint


def test_a_converted_model_keeps_its_scheduler(pipeline_folder: Path, tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    model = load_system(pipeline_folder)
    model.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    model.save(tmp_path)
    opened = load_system(tmp_path).scheduler
    assert isinstance(opened, FlowMatchEulerDiscreteScheduler) and opened.config.shift == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_files_load_in_any_dtype(pipeline_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tmp_path / "half"
    half = load_system(pipeline_folder, dtype=torch.float16)
    half.save(folder)
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}

    model = load_system(folder, dtype=dtype)
    for module in (model.vae, model.text_encoder, model.unet):
        assert {value.dtype for value in module.parameters()} == {dtype} and not module.training
    torch.testing.assert_close(model.unet.conv_in.weight, stored["conv_in.weight"].to(dtype), rtol=0, atol=0)
    given = model.codec.sample(model.codec.encode(torch.rand(1, 1, 3, 16, 16)))
    condition = model.condition(given, model.encode_text(["a ball"]))
    prediction = model.network(torch.randn(1, 1, 4, 8, 8), torch.tensor([5]), **condition)
    assert prediction.dtype == dtype and prediction.isfinite().all()
    assert half.fingerprint == load_system(folder).fingerprint


def test_a_folder_of_fp16_variants_loads(pipeline_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "variant"))
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    model = load_system(folder)
    assert model.fingerprint == load_system(pipeline_folder).fingerprint


def test_encode_gives_the_posterior(model: InstructPix2Pix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "AT_ONCE", 2)
    pixels = torch.rand(5, 3, 16, 24) * 2 - 1
    moments = model.codec.encode(pixels[None])
    with torch.no_grad():
        posterior = model.vae.encode(pixels).latent_dist
    assert moments.shape == (1, 5, 8, 8, 12) and model.codec.downscale == 2 and model.codec.channels == 4
    torch.testing.assert_close(moments[0, :, :4], posterior.mode())
    torch.testing.assert_close(model.codec.sample(moments)[0], posterior.mode())
    torch.testing.assert_close(torch.exp(0.5 * moments[0, :, 4:]), posterior.std)
    noise = torch.randn(1, 5, 4, 8, 12)
    drawn = model.codec.sample(moments, noise)
    torch.testing.assert_close(drawn[0], posterior.mean + posterior.std * noise[0])
    with pytest.raises(InputError, match="multiples of 2"):
        model.codec.encode(torch.rand(1, 1, 3, 15, 16))


def test_decode_undoes_the_scaling(model: InstructPix2Pix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "AT_ONCE", 2)
    latents = torch.randn(5, 4, 8, 8)
    with torch.no_grad():
        expected = model.vae.decode(latents / 0.5).sample.clamp(-1, 1)
    assert model.codec.scale == 0.5
    torch.testing.assert_close(model.codec.decode(latents[None])[0], expected, atol=1e-5, rtol=1e-5)
    assert model.codec.decode(latents[None] * 1e3).abs().max() <= 1
    torch.testing.assert_close(model.codec.denormalize(model.codec.normalize(latents)), latents)


def test_encode_prompts_matches_diffusers(model: InstructPix2Pix, build_pipeline: Callable[..., Any]) -> None:
    prompts = ["a red ball rolls to the left", "make it snow " * 20]
    expected = build_pipeline()._encode_prompt(prompts, "cpu", 1, True)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text([*prompts, "", "", "", ""])["prompt_embeds"], expected)
    assert not torch.allclose(*model.encode_text(["a ball", ""])["prompt_embeds"])


def test_fingerprint_follows_the_encoders_only(pipeline_folder: Path) -> None:
    first = load_system(pipeline_folder)
    second = load_system(pipeline_folder)
    with torch.no_grad():
        second.unet.conv_in.weight.add_(1)
    assert first.fingerprint == second.fingerprint
    third = load_system(pipeline_folder)
    with torch.no_grad():
        third.vae.quant_conv.bias[0].add_(1e-3)
    assert third.fingerprint != first.fingerprint
    fourth = load_system(pipeline_folder)
    fourth.tokenizer.add_tokens(["<new>"])
    assert fourth.fingerprint != first.fingerprint


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_without_a_part_is_refused(pipeline_folder: Path, tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "broken"))
    shutil.rmtree(folder / part)
    with pytest.raises(InputError, match=f"broken.*lacks {part}/.*save_pretrained"):
        load_system(folder)


@pytest.mark.fault("a model's weights are a pickle", "they are not opened")
def test_pickled_weights_are_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "pickled"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(InputError, match="diffusion_pytorch_model.bin, which would have to be unpickled"):
        load_system(folder)


def test_unet_of_another_kind_is_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "inpainting"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_in.weight"] = torch.randn(16, 9, 3, 3)
    save_file(state, weights, metadata={"format": "pt"})
    _edit_config(folder, "unet", in_channels=9)
    with pytest.raises(InputError, match=r"in_channels=9.*expected in_channels 4 .* or 8"):
        load_system(folder)


@pytest.mark.fault("a model's weights are cut off", "an error that names the part")
def test_broken_weights_are_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "cut"))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="could not load vae of model .*cut"):
        load_system(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_lack_parameters_are_refused(pipeline_folder: Path, tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "gaps"))
    (weights,) = (folder / part).glob("*.safetensors")
    state = load_file(weights)
    dropped = sorted(state)[-1]
    del state[dropped]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"weights of {part} in model .*gaps.* lack 1 parameters.*{dropped}"):
        load_system(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_path_is_not_looked_up(name: str) -> None:
    with pytest.raises(InputError, match=f"model '{name}' does not exist; expected 'tiny'"):
        load_system(name)


def offline(*args: Any, **kwargs: Any) -> Any:
    raise OSError("We couldn't connect to the hub")


def test_an_id_that_cannot_be_fetched_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", offline)
    with pytest.raises(InputError, match="someone/some-model.*couldn't connect.*pass that folder; 'tiny' needs no"):
        load_system("someone/some-model")


@pytest.mark.fault("a hub id without a connection", "one attempt: what was downloaded before opens, else one line")
def test_without_a_connection_there_is_one_attempt(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, **options: asked.append(url) or offline())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: pytest.fail("asked again"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="any file of model 'someone/some-model' from the hub: We couldn't connect"):
        load_system("someone/some-model")
    assert len(asked) == 1 and asked[0].endswith("someone/some-model/resolve/main/system.json")
    cached = tmp_path / "models--someone--some-model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    shutil.copytree(pipeline_folder, cached / "snapshots" / "abc")
    assert load_system("someone/some-model").fingerprint == load_system(pipeline_folder).fingerprint


def test_the_description_of_a_hub_id_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "system.json"
    file.write_text(json.dumps({"system": {"kind": "instruct-pix2pix", "past_frames": 2}, "size": [32, 48]}))
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: (asked.append(names), str(file))[1])
    found = read_description("someone/some-model")
    assert asked == [("someone/some-model", "system.json")]
    assert found is not None and found.size == (32, 48)
    assert found.system == InstructPix2PixConfig(past_frames=2)


def test_unknown_scheduler_is_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "scheduler"))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DiffusionPipeline"}))
    with pytest.raises(InputError, match="names 'DiffusionPipeline'"):
        load_system(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        *(
            (
                "tokenizer/tokenizer_config.json",
                {"model_max_length": length},
                "model_max_length=.*; expected .* at least 2",
            )
            for length in (-5, 0, 1, "x", True)
        ),
        ("tokenizer/tokenizer_config.json", [], "tokenizer"),
        *(
            (
                "scheduler/scheduler_config.json",
                {"num_train_timesteps": steps},
                "scheduler_config.json .*timesteps=.*at least 1",
            )
            for steps in (0, -1, 1.5, "x", [])
        ),
        ("scheduler/scheduler_config.json", {"beta_schedule": "odd"}, "scheduler_config.json .*odd"),
        ("scheduler/scheduler_config.json", {"beta_start": "x"}, "scheduler_config.json of model"),
        *(("scheduler/scheduler_config.json", value, "scheduler") for value in ([], 3, None)),
        *(("system.json", value, "system.json: can't be read") for value in ([], 3, None)),
        *(("unet/config.json", value, "unet/config.json: can't be read") for value in ([], 3, None)),
        *(("vae/config.json", value, "vae") for value in ([], 3, None)),
        *(("text_encoder/config.json", value, "text_encoder") for value in ([], 3)),
    ],
)
def test_a_config_that_is_none_is_one_line(
    pipeline_folder: Path, tmp_path: Path, file: str, content: Any, message: str
) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "model"))
    path = folder / file
    before = json.loads(path.read_text()) if isinstance(content, dict) and path.exists() else {}
    path.write_text(json.dumps({**before, **content} if isinstance(content, dict) else content))
    with pytest.raises(InputError, match=message) as raised:
        load_system(folder)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.fault("a model's config is nested without end", "one line")
def test_a_config_of_a_hundred_thousand_brackets_is_one_line(pipeline_folder: Path, tmp_path: Path) -> None:
    for file in ("system.json", "unet/config.json", "scheduler/scheduler_config.json"):
        folder = Path(shutil.copytree(pipeline_folder, tmp_path / file.replace("/", "-")))
        (folder / file).write_text("[" * 100_000)
        with pytest.raises(InputError, match=file.partition("/")[0]):
            load_system(folder)
