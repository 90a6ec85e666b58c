"""The pipeline: what diffusers' users expect of a call, and the rollout underneath, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import contrastive_i2v
from contrastive_i2v.data.video import probe, resize_frames
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import load_shapes, load_system
from contrastive_i2v.models.autoencoder import ONLOAD_DEVICE, device_of
from contrastive_i2v.models.offloading import offload_encoders
from contrastive_i2v.pipeline import ImageToVideoPipeline
from contrastive_i2v.sampling import rollout


@pytest.fixture(scope="module")
def pipeline(pipeline_folder: Path) -> ImageToVideoPipeline:
    found = ImageToVideoPipeline.from_pretrained(pipeline_folder)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def exact(pipeline_folder: Path) -> ImageToVideoPipeline:
    """A network in float64: its rounding does not depend on the batch's size by more than the latents' own float32."""
    found = ImageToVideoPipeline.from_pretrained(pipeline_folder, dtype=torch.float64)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def call(pipeline: ImageToVideoPipeline, image: Any, **options: Any) -> Any:
    given = {"prompt": "a red ball", "num_frames": 3, "num_inference_steps": 2, "seeds": [5]} | options
    return pipeline(image=image, **given).frames


def test_it_is_the_package_s_front_door() -> None:
    assert contrastive_i2v.ImageToVideoPipeline is ImageToVideoPipeline
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = contrastive_i2v.Pipeline


def test_the_readme_s_first_lines_run_after_its_own_install(
    image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the packages that diffusers would write a video with."""
    code = (Path(__file__).parent.parent / "README.md").read_text().split("```python\n")[1].split("```")[0]
    for package in ("imageio", "imageio_ffmpeg", "cv2"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    image.save("photo.jpg")
    exec(code, {})
    assert (probe(tmp_path / "video.mp4").frames, probe(tmp_path / "video.mp4").fps) == (16, 5.0)


def test_a_video_is_written_of_frames_of_every_kind(
    pipeline: ImageToVideoPipeline, image: Image.Image, tmp_path: Path
) -> None:
    files = []
    for kind in ("pil", "np", "pt"):
        contrastive_i2v.export_to_video(call(pipeline, image, output_type=kind)[0], tmp_path / f"{kind}.mp4", fps=7)
        files.append((tmp_path / f"{kind}.mp4").read_bytes())
    assert files[0] == files[1] == files[2]
    assert (probe(tmp_path / "np.mp4").frames, probe(tmp_path / "np.mp4").fps) == (3, 7.0)
    latents = call(pipeline, image, output_type="latent")[0]
    for frames, name, fps, said in (
        (latents, "a.mp4", 5.0, r"image: got Tensor \(4, 8, 8\); expected a PIL image"),
        ([], "a.mp4", 5.0, "a.mp4: no frames; expected at least one"),
        ([image], "a.avi", 5.0, "a.avi: expected a name that ends in .mp4"),
        ([image], "a.mp4", 0.0, r"fps: expected 0.01 to 1e\+06 frames a second, .* got 0.0"),
    ):
        with pytest.raises(InputError, match=said):
            contrastive_i2v.export_to_video(frames, tmp_path / name, fps)
    assert len(list(tmp_path.iterdir())) == 3


def test_its_latents_are_the_rollout_s(pipeline: ImageToVideoPipeline, image: Image.Image) -> None:
    latents = call(pipeline, image, output_type="latent", guidance_scale=3.0, seeds=[7, 8], prompt=["a", "b"])
    system = pipeline.system
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    own = system.codec.sample(system.codec.encode(resize_frames(pixels, system.size)[:, None]))[:, 0]
    sampler = type(system.sampler)(steps=2, guidance_scale=3.0, image_guidance_scale=1.5)
    text = system.encode_text(["a", "b"])
    expected = rollout(system, own.expand(2, -1, -1, -1), text, frames=3, seeds=[7, 8], sampler=sampler)
    assert torch.equal(latents, expected)


def test_negative_prompts_stand_in_for_no_prompt(pipeline: ImageToVideoPipeline, image: Image.Image) -> None:
    options = {"output_type": "latent", "guidance_scale": 3.0, "seeds": [7, 8], "prompt": ["a", "b"]}
    plain, empty = (call(pipeline, image, **options, **more) for more in ({}, {"negative_prompt": ""}))
    assert torch.equal(plain, empty)
    each = call(pipeline, image, **options, negative_prompt=["ugly", "b"])
    one = call(pipeline, image, **options, negative_prompt="ugly")
    assert torch.equal(each[0], one[0]) and not torch.allclose(each[1], one[1]) and not torch.allclose(one, plain)
    # led away from its own prompt, a video is that of the prompt without guidance, where none is towards the image
    options |= {"image_guidance_scale": 1.0}
    same = call(pipeline, image, **options, negative_prompt=["ugly", "b"])
    unguided = call(pipeline, image, **options | {"guidance_scale": 1.0})
    torch.testing.assert_close(same[1], unguided[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="negative_prompt: guidance towards the prompt is off"):
        call(pipeline, image, **options | {"guidance_scale": 1.0}, negative_prompt="ugly")


def test_the_output_types_say_the_same(pipeline: ImageToVideoPipeline, image: Image.Image) -> None:
    pt, array, pil = (call(pipeline, image, output_type=kind) for kind in ("pt", "np", "pil"))
    assert pt.shape == (1, 3, 3, 16, 16) and array.shape == (1, 3, 16, 16, 3)
    assert float(pt.min()) >= 0 and float(pt.max()) <= 1
    assert np.array_equal(array, pt.permute(0, 1, 3, 4, 2).numpy())
    assert [len(video) for video in pil] == [3] and pil[0][0].size == (16, 16)
    assert np.abs(np.asarray(pil[0][1]) / 255 - array[0, 1]).max() <= 0.5 / 255 + 1e-6
    latents = call(pipeline, image, output_type="latent")
    assert np.array_equal(pipeline.decode(latents, 3, "np"), array)


def test_images_of_every_kind_are_the_same_image(
    pipeline: ImageToVideoPipeline, exact: ImageToVideoPipeline, image: Image.Image
) -> None:
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    kinds = [image, array, array / 255, tensor, tensor / 255, image.convert("RGBA")]
    found = [call(pipeline, one, output_type="latent") for one in kinds]
    assert all(torch.equal(found[0], one) for one in found[1:])
    alone = call(exact, image, output_type="latent")
    both = call(exact, [image, array], output_type="latent", seeds=[5, 5])
    torch.testing.assert_close(both[1:], alone, atol=1e-6, rtol=1e-6)


def test_a_generator_decides_and_moves_on(
    pipeline: ImageToVideoPipeline, exact: ImageToVideoPipeline, image: Image.Image
) -> None:
    def draw(generator: Any, model: ImageToVideoPipeline = pipeline, **options: Any) -> torch.Tensor:
        found: torch.Tensor = call(model, image, seeds=None, generator=generator, output_type="latent", **options)
        return found

    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    once = draw(first)
    assert torch.equal(once, draw(second))
    assert not torch.equal(once, draw(first)), "the same generator goes on"
    assert not torch.equal(draw(None), draw(None))
    alone = draw(torch.Generator().manual_seed(1), exact)
    generators = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    pair = draw(generators, exact, prompt=["a red ball", "a"])
    torch.testing.assert_close(pair[:1], alone, atol=1e-6, rtol=1e-6)


def test_the_model_s_own_sampler_is_the_default(pipeline_folder: Path, image: Image.Image) -> None:
    from contrastive_i2v.sampler import Sampler

    pipeline = ImageToVideoPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.system.sampler = Sampler(steps=3, guidance_scale=2.0, image_guidance_scale=1.0)
    own = call(pipeline, image, num_inference_steps=None, output_type="latent")
    said = call(
        pipeline, image, num_inference_steps=3, guidance_scale=2.0, image_guidance_scale=1.0, output_type="latent"
    )
    assert torch.equal(own, said)
    assert not torch.equal(own, call(pipeline, image, output_type="latent"))


def test_another_scheduler(pipeline_folder: Path, image: Image.Image) -> None:
    from diffusers import EulerDiscreteScheduler

    pipeline = ImageToVideoPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    before = call(pipeline, image, output_type="latent")
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    assert not torch.equal(before, call(pipeline, image, output_type="latent"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipeline_folder: Path, pipeline: ImageToVideoPipeline, image: Image.Image, dtype: Any) -> None:
    half = ImageToVideoPipeline.from_pretrained(pipeline_folder, dtype=dtype)
    half.set_progress_bar_config(disable=True)
    assert {p.dtype for part in half.system.parts().values() for p in part.parameters()} == {dtype}
    made, whole = (call(one, image, output_type="np") for one in (half, pipeline))
    assert np.isfinite(made).all() and 0 < np.abs(made - whole).max() < 0.1
    assert half.to(dtype=torch.float32).system.device.type == "cpu"


@pytest.mark.slow
def test_compiled_it_makes_the_same_video(
    pipeline_folder: Path, exact: ImageToVideoPipeline, image: Image.Image
) -> None:
    compiled = ImageToVideoPipeline.from_pretrained(pipeline_folder, dtype=torch.float64)
    compiled.set_progress_bar_config(disable=True)
    names = list(compiled.system.network.state_dict())
    compiled.enable_compile()
    assert list(compiled.system.network.state_dict()) == names  # a saved one opens as before
    made, plain = (call(one, image, output_type="latent") for one in (compiled, exact))
    assert compiled.system.network._compiled_call_impl is not None
    torch.testing.assert_close(made, plain, atol=1e-6, rtol=0)


def test_without_a_compiler_one_error_says_so(pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(InputError, match=r"compile: .*No working C\+\+ compiler found.*install a C\+\+ compiler"):
        ImageToVideoPipeline.from_pretrained(pipeline_folder).enable_compile()


def test_offloading_gives_the_same_frames(
    pipeline_folder: Path, pipeline: ImageToVideoPipeline, image: Image.Image
) -> None:
    offloaded = ImageToVideoPipeline.from_pretrained(pipeline_folder)
    offloaded.set_progress_bar_config(disable=True)
    offloaded.enable_model_cpu_offload("cpu")
    assert all(hasattr(part, "_hf_hook") for part in offloaded.system.parts().values())
    assert np.array_equal(call(offloaded, image, output_type="np"), call(pipeline, image, output_type="np"))


@pytest.mark.parametrize("level", ["block", "leaf"])
def test_group_offloading_gives_the_same_frames(
    level: Any, pipeline: ImageToVideoPipeline, pipeline_folder: Path, image: Image.Image
) -> None:
    offloaded = ImageToVideoPipeline.from_pretrained(pipeline_folder)
    offloaded.set_progress_bar_config(disable=True)
    offloaded.enable_group_offload("cpu", level=level)
    system: Any = offloaded.system
    groups = [name for name, module in system.network.named_modules() if hasattr(module, "_diffusers_hook")]
    assert ("unet.down_blocks.0" in groups) == (level == "block")
    assert ("unet.conv_out" in groups) == (level == "leaf")
    for part in (system.vae, system.text_encoder):
        hooked = {type(module) for module in part.modules() if hasattr(module, "_diffusers_hook")}
        assert {torch.nn.Linear} < hooked and type(part) not in hooked
    assert np.array_equal(call(offloaded, image, output_type="np"), call(pipeline, image, output_type="np"))
    for part in (system.vae, system.text_encoder, system.unet):
        setattr(part, ONLOAD_DEVICE, torch.device("meta"))
        assert device_of(part).type == "meta", "the codec takes its inputs to where weights come"


def test_offload_in_a_models_name(
    pipeline: ImageToVideoPipeline, pipeline_folder: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = load_system(f"{pipeline_folder}?offload=leaf", device="cpu")
    offloaded = ImageToVideoPipeline(system)
    offloaded.set_progress_bar_config(disable=True)
    assert system.offloaded == "leaf" and getattr(system.parts()["vae"], ONLOAD_DEVICE) == torch.device("cpu")
    assert np.array_equal(call(offloaded, image, output_type="np"), call(pipeline, image, output_type="np"))
    with pytest.raises(InputError, match="offload=leaf: compiled code"):
        system.compile()
    with pytest.raises(InputError, match="offload=leaf: is for sampling"):
        offload_encoders(system, torch.device("cpu"))
    with pytest.raises(InputError, match="offload is said after opening it"):
        ImageToVideoPipeline.from_pretrained(f"{pipeline_folder}?offload=leaf")
    with pytest.raises(InputError, match="offload=layer: expected one of block, leaf"):
        load_system(f"{pipeline_folder}?offload=layer")
    with pytest.raises(InputError, match="offload is for sampling"):
        load_shapes(f"{pipeline_folder}?offload=leaf")


def test_parts_compute_in_their_own_precision(pipeline_folder: Path, image: Image.Image) -> None:
    dtype = {"default": torch.bfloat16, "vae": torch.float32}
    mixed = ImageToVideoPipeline.from_pretrained(pipeline_folder, dtype=dtype)
    mixed.set_progress_bar_config(disable=True)
    kept = {name: next(part.parameters()).dtype for name, part in mixed.system.parts().items()}
    assert kept == {"text_encoder": torch.bfloat16, "network": torch.bfloat16, "vae": torch.float32}
    whole = ImageToVideoPipeline.from_pretrained(pipeline_folder)
    first, expected = (
        call(one.to("cpu"), image, output_type="pt", num_frames=1) for one in (mixed, whole)
    )  # a video of the given image alone: the autoencoder's
    assert torch.equal(first, expected)
    assert call(mixed, image, output_type="pt").isfinite().all()
    with pytest.raises(InputError, match="dtype of unet: instruct-pix2pix has text_encoder, network, vae"):
        mixed.to(dtype={"unet": torch.float32})


def test_offloading_moves_a_part_where_it_computes(pipeline_folder: Path) -> None:
    """On the meta device, which takes weights like any other and holds none."""
    offloaded = ImageToVideoPipeline.from_pretrained(pipeline_folder)
    offloaded.enable_model_cpu_offload("meta")
    assert {device_of(part).type for part in offloaded.system.parts().values()} == {"meta"}
    assert offloaded.system.encode_text(["a"])["prompt_embeds"].device.type == "meta"


def test_a_saved_pipeline_opens_again(pipeline: ImageToVideoPipeline, image: Image.Image, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    again = ImageToVideoPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(call(again, image, output_type="latent"), call(pipeline, image, output_type="latent"))
    assert load_system(tmp_path / "saved").sampler == pipeline.system.sampler


def test_the_progress_bar_counts_frames(
    pipeline_folder: Path, image: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = ImageToVideoPipeline.from_pretrained(pipeline_folder)
    seen: list[int] = []
    call(pipeline, image, callback=lambda frame, latents: seen.append(frame))
    assert seen == [1, 2]
    assert "3/3" in capsys.readouterr().err
    pipeline.set_progress_bar_config(disable=True)
    call(pipeline, image)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output_type": "gif"}, "output_type='gif'; expected pil, np, pt or latent"),
        ({"num_frames": 0}, "num_frames: expected at least 1, got 0"),
        ({"height": 15}, "height, width: got 15x16 pixels .* multiples of 2, the nearest is 16x16"),
        ({"prompt": ["a", "b"], "seeds": [1, 2], "image": [None] * 3}, "prompt: expected 1 or 3, got 2"),
        ({"image": np.zeros((4, 4))}, r"image: got ndarray \(4, 4\); expected a PIL image"),
        ({"image": "photo.jpg"}, "image: got str; expected a PIL image"),
        ({"seeds": [1, 2, 3]}, "seeds has 3 entries; expected one for each of the 1 latents"),
        ({"num_inference_steps": 0}, "steps: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_named(
    pipeline: ImageToVideoPipeline, image: Image.Image, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        call(pipeline, options.pop("image", image), **options)


def test_sizes_other_than_square(pipeline: ImageToVideoPipeline, image: Image.Image) -> None:
    frames = call(pipeline, image, height=16, width=24, output_type="np")
    assert frames.shape == (1, 3, 16, 24, 3)
