"""The video systems from the command line: an image from text, a moved camera, frames between, options in a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from contrastive_i2v.cli.main import main
from contrastive_i2v.data.video import probe
from contrastive_i2v.models import load_system
from contrastive_i2v.models.consisti2v import ConsistI2VConfig
from contrastive_i2v.models.emu_video import EmuVideoConfig
from contrastive_i2v.pipeline import ImageToVideoPipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained models of every video task, in small."""
    root = tmp_path_factory.mktemp("models")
    load_system("tiny", ConsistI2VConfig(frames=4)).save(root / "consisti2v")
    start = "tiny"
    for task, options in (("image", {}), ("video", {"frames": 4}), ("interpolation", {"keyframes": 3, "gap": 2})):
        load_system(start, EmuVideoConfig(task=task, **options)).save(root / task)
        start = str(root / task)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A wide picture whose left half is red and right half blue."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, :64, 0], pixels[:, 64:, 2] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_prompt_alone_makes_the_image_first(folders: dict[str, Path], tmp_path: Path) -> None:
    command = ["sample", "--model", str(folders["video"]), "--prompt", "a red ball rolls", "a ball", "--frames", "6"]
    command += ["--steps", "1", "--formats", "latents", "--output"]
    assert main([*command, str(tmp_path / "both")]) == 0
    videos = [load_file(tmp_path / f"both/0000{i}.safetensors")["latents"] for i in range(2)]
    assert all(video.shape == (6, 4, 16, 16) and bool(video.isfinite().all()) for video in videos)
    system = load_system(folders["video"], device="cpu")
    text = system.encode_text(["a red ball rolls", "a ball"])
    from contrastive_i2v.sampler import Sampler
    from contrastive_i2v.sampling import first_frames

    one = Sampler(steps=1, guidance_scale=1.0, image_guidance_scale=1.0)
    alone = first_frames(system, text, size=(64, 64), seeds=[0, 1], sampler=one)
    torch.testing.assert_close(torch.stack([video[0] for video in videos]), system.codec.normalize(alone).cpu())


@pytest.mark.parametrize(("name", "level"), [("consisti2v", "block"), ("video", "leaf")])
def test_a_video_model_s_groups_come_and_go(name: str, level: Any, folders: dict[str, Path], photo: Path) -> None:
    made = []
    for offloaded in (False, True):
        pipeline = ImageToVideoPipeline.from_pretrained(f"{folders[name]}?quantize=int8")
        pipeline.set_progress_bar_config(disable=True)
        if offloaded:
            pipeline.enable_group_offload("cpu", level=level)
        with Image.open(photo) as image:
            options = {"num_frames": 4, "num_inference_steps": 1, "seeds": [3], "output_type": "latent"}
            made.append(pipeline(image, "a ball", **options).frames)
    assert torch.equal(made[0], made[1])


def test_a_model_that_makes_no_image_wants_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["sample", "--prompt", "a ball", "--output", str(tmp_path)]) == 2
    assert "instruct-pix2pix makes no image from text; expected an image to begin with" in capsys.readouterr().err


def test_the_camera_moves_over_the_image(folders: dict[str, Path], photo: Path) -> None:
    """It starts at the image's left end, where all is red; a still camera sees its middle."""
    pipeline = ImageToVideoPipeline.from_pretrained(folders["consisti2v"])
    pipeline.set_progress_bar_config(disable=True)
    options = {"image": Image.open(photo), "prompt": "a ball", "num_frames": 4, "seeds": [3], "output_type": "pt"}
    with torch.no_grad():
        panned = pipeline(**options, camera="pan-right", num_inference_steps=1).frames[0]
        still = pipeline(**options, num_inference_steps=1).frames[0]

    def redness(frame: torch.Tensor) -> float:
        return float(frame[0].mean() - frame[2].mean())

    assert redness(panned[0]) > 0.5 and abs(redness(still[0])) < 0.1
    assert (panned - still)[1:].abs().mean() > 0.01


@pytest.mark.parametrize(
    ("model", "image", "options", "message"),
    [
        ("consisti2v", True, ["--camera", "pan-left", "--resolution", "64", "128"], "expected a wider image"),
        ("video", True, ["--camera", "zoom-in"], "layout: the noise of emu-video follows none"),
        ("video", False, ["--camera", "zoom-in"], "camera zoom-in: it moves over an image; expected one"),
        ("interpolation", True, [], "so none can follow another; expected a system whose given frames come first"),
        ("consisti2v?frame_init=false", True, ["--camera", "zoom-in"], "which is off; expected frame_init=True"),
        ("consisti2v", True, ["--fps", "20"], "is a stride of 0.25 frames"),
        ("consisti2v?frame_init", True, [], "expected NAME?OPTION=VALUE"),
        ("consisti2v?no_such=1", True, [], "no_such"),
    ],
)
def test_bad_input_is_one_line(
    folders: dict[str, Path],
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    image: bool,
    options: list[str],
    message: str,
) -> None:
    name, mark, rest = model.partition("?")
    command = ["sample", "--model", f"{folders[name]}{mark}{rest}", "--prompt", "a", "--output", str(tmp_path / "out")]
    command += [*(["--image", str(photo)] if image else []), "--frames", "4", "--steps", "1", *options]
    assert main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.glob("out/[!.]*"))


def test_latents_are_encoded_ahead_as_a_recipe_trains(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["random-model", "--kind", "wan", "--output", str(tmp_path / "wan")]) == 0
    options = ["--recipe", "wan", "--model", str(tmp_path / "wan"), "--data.path", str(clips / "train")]
    options += [
        "--data.resolution",
        "32",
        "--data.frames.frame-rate",
        "12",
        "--data.cache-dir",
        str(tmp_path / "cache"),
    ]
    options += ["--system.frames", "9", "--system.text-dtype", "bfloat16"]
    assert main(["encode", *options, "--offload-encoders"]) == 0
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("cache/*/*.safetensors")}
    assert len(files) == 6
    assert {load_file(file)["prompt_embeds"].dtype for file in files} == {torch.bfloat16}
    more = ["--steps", "1", "--lora.rank", "2", "--output", str(tmp_path / "run"), "--no-gradient-checkpointing"]
    assert main(["train", *options, *more]) == 0
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.glob("cache/*/*.safetensors")}
    opened = load_system(tmp_path / "run", device="cpu")
    assert next(opened.parts()["text_encoder"].parameters()).dtype == torch.bfloat16
    assert main(["encode", "--recipe", "best"]) == 2
    assert "--recipe best: no such recipe; expected one of contrastive" in capsys.readouterr().err


def test_options_in_a_name(folders: dict[str, Path]) -> None:
    system = load_system(f"{folders['consisti2v']}?frame_init=false&cutoff=0.5&max-stride=3")
    assert system.config == ConsistI2VConfig(
        **{**vars(load_system(folders["consisti2v"]).config), "frame_init": False, "cutoff": 0.5, "max_stride": 3}
    )


def test_an_interpolation_model_makes_frames_between(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    given = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    save_file({"latents": given}, tmp_path / "video.safetensors")
    command = ["interpolate", "--model", str(folders["interpolation"]), "--input", str(tmp_path / "video.safetensors")]
    command += ["--output", str(tmp_path / "out")]
    assert main([*command, "--prompt", "a ball", "--formats", "latents", "mp4"]) == 0
    latents = load_file(tmp_path / "out/video.safetensors")["latents"]
    assert latents.shape == (7, 4, 16, 16)  # 2 (4 - 1) + 1
    assert probe(tmp_path / "out/video.mp4").fps == 10
    assert main([*command, "--factor", "3"]) == 2
    assert "the model makes 2 frames of one" in capsys.readouterr().err
    assert main(["interpolate", "--input", str(tmp_path / "video.safetensors"), "--prompt", "a"]) == 2
    assert "--prompt: a path between latents takes none" in capsys.readouterr().err
