"""The command that calibrates, and the last step of a training: what is kept where, and who uses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from contrastive_i2v.cli import calibrate, sample, train
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation import calibration
from contrastive_i2v.evaluation.calibration import read_default
from contrastive_i2v.models import load_system
from contrastive_i2v.pipeline import ImageToVideoPipeline
from contrastive_i2v.sampler import Sampler

BEFORE = Sampler(steps=2, guidance_scale=1.0, image_guidance_scale=1.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 16 pixels and 40 frames, 25 a second."""
    root = tmp_path_factory.mktemp("clips")
    make_shapes(root, ShapesConfig(train_clips=4, test_clips=4, size=16, frames=40), progress=False)
    return root


@pytest.fixture
def model(pipeline_folder: Path, tmp_path: Path) -> Path:
    """A model folder that this library wrote, whose predictions are too small for its rollouts."""
    system = load_system(pipeline_folder, device="cpu")
    system.sampler, system.size, system.fps = BEFORE, (16, 16), 5.0
    with torch.no_grad():
        for parameter in system.unet.conv_out.parameters():  # type: ignore[attr-defined]
            parameter *= 0.2
    system.save(tmp_path / "model")
    return tmp_path / "model"


def arguments(model: Path, clips: Path, output: Path, *more: str) -> list[str]:
    return [
        "--model",
        str(model),
        "--data.path",
        str(clips / "test"),
        "--data.frames",
        "4",
        "--output",
        str(output),
        *more,
    ]


def training(model: Path, clips: Path, output: Path, latents: Path) -> list[str]:
    """Options of `train` for one step and a calibration."""
    options = ["--model", str(model), "--data.path", str(clips / "train"), "--data.validation-path"]
    options += [str(clips / "test"), "--data.resolution", "16", "--data.cache-dir", str(latents), "--steps", "1"]
    options += ["--batch-size", "2", "--preview.every", "0", "--preview.frames", "5"]
    return [*options, "--output", str(output)]


def test_the_model_keeps_what_was_found_and_everything_uses_it(
    model: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration.Search, "told_apart", lambda self, trial, best: trial.objective > best.objective)
    calibrate.run(arguments(model, clips, tmp_path / "out", "--steps", "1"))
    said = capsys.readouterr().out
    found = load_system(model, device="cpu").sampler
    assert found != BEFORE and f"{found}" in said
    assert (tmp_path / "out" / "calibration.html").is_file() and (tmp_path / "out" / "calibration.mp4").is_file()
    kept = json.loads((model / "calibration.json").read_text())
    assert kept["chosen"]["sampler"]["prediction_scale"] == found.prediction_scale
    assert read_default(model / "calibration.json") == BEFORE
    assert ImageToVideoPipeline.from_pretrained(model).system.sampler == found
    weights = (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()

    description = (model / "system.json").read_text()
    monkeypatch.setattr(
        calibration, "rollout", None
    )  # a second search makes nothing again, and begins where the first did
    monkeypatch.setattr("contrastive_i2v.evaluation.report.calibration.write_video", lambda *a, **k: None)
    monkeypatch.setattr("contrastive_i2v.cli.calibrate.write_page", lambda *a, **k: None)
    calibrate.run(arguments(model, clips, tmp_path / "out", "--steps", "1"))
    assert (model / "system.json").read_text() == description
    assert (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def launch(command: str, options: list[str]) -> str:
    """Run a command in two processes on the CPU; returns what they print."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["-m", "contrastive_i2v", command, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


@pytest.mark.processes
@pytest.mark.fault("a calibration is stopped", "the same command goes on, to the same result")
def test_two_processes_find_what_one_finds_and_go_on_where_they_were_stopped(
    model: Path, clips: Path, tmp_path: Path
) -> None:
    """Four clips in batches of two: a batch a process, so everything is the same to the bit."""
    for number in (1, 2):
        shutil.copytree(model, tmp_path / f"copy-{number}")
    more = ["--steps", "1", "--batch-size", "2"]
    calibrate.run(arguments(model, clips, tmp_path / "one", *more))
    expected = (model / "calibration.json").read_text()
    said = launch("calibrate", arguments(tmp_path / "copy-1", clips, tmp_path / "two", *more))
    assert said.count("page:  ") == 1 and (tmp_path / "two" / "calibration.html").is_file()
    assert (tmp_path / "copy-1" / "calibration.json").read_text() == expected
    assert (tmp_path / "copy-1" / "system.json").read_text() == (model / "system.json").read_text()

    trials = sorted((tmp_path / "two" / "trials").iterdir())
    for file in trials[::2]:
        file.unlink()
    kept = {file: file.stat().st_mtime_ns for file in trials[1::2]}
    launch("calibrate", arguments(tmp_path / "copy-2", clips, tmp_path / "two", *more))
    assert (tmp_path / "copy-2" / "calibration.json").read_text() == expected
    assert kept == {file: file.stat().st_mtime_ns for file in kept}


@pytest.mark.processes
def test_all_processes_of_a_training_calibrate_at_its_end(model: Path, clips: Path, tmp_path: Path) -> None:
    """Of 16 frames there is no clip, which both find alike, and go on to 5 frames."""
    said = launch("train", training(model, clips, tmp_path / "run", tmp_path / "latents"))
    folder = tmp_path / "run" / "model"
    kept = json.loads((folder / "calibration.json").read_text())
    assert said.count("objective ") == 3 and said.count("next:") == 1 and kept["frames"] == 5
    assert load_system(folder, device="cpu").sampler.prediction_scale == kept["chosen"]["sampler"]["prediction_scale"]


def test_a_copy_is_saved_where_the_model_cant_keep_it(
    model: Path, pipeline_folder: Path, clips: Path, tmp_path: Path
) -> None:
    for name in ("tiny", str(pipeline_folder)):
        with pytest.raises(InputError, match="give --save FOLDER"):
            calibrate.run(arguments(Path(name), clips, tmp_path / "out"))
    before = (model / "system.json").read_text()
    calibrate.run(arguments(model, clips, tmp_path / "out", "--steps", "1", "--save", str(tmp_path / "copy")))
    assert (model / "system.json").read_text() == before and not (model / "calibration.json").exists()
    copy = load_system(tmp_path / "copy", device="cpu")
    assert copy.sampler.steps in (1, 2) and (tmp_path / "copy" / "calibration.json").is_file()


def test_weights_may_come_and_go_and_other_options_are_refused(model: Path, clips: Path, tmp_path: Path) -> None:
    def run(name: str) -> None:
        given = arguments(model, clips, tmp_path / "out")
        calibrate.run([name if one == str(model) else one for one in given])

    with pytest.raises(InputError, match="expected no option of the model's but offload, got steps"):
        run(f"{model}?steps=2")
    run(f"{model}?offload=leaf")
    assert (model / "calibration.json").exists() and load_system(model, device="cpu").offloaded is None


def test_too_short_clips_are_said(model: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its 4 clips can be evaluated"):
        calibrate.run([*arguments(model, clips, tmp_path / "out"), "--data.frames", "30"])
    assert load_system(model, device="cpu").sampler == BEFORE


def test_a_training_with_validation_clips_ends_with_it(
    model: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = training(model, clips, tmp_path / "run", tmp_path / "latents")
    train.run(options)
    said = capsys.readouterr().out
    assert "objective " in said and "next:" in said
    folder = tmp_path / "run" / "model"
    kept = json.loads((folder / "calibration.json").read_text())
    assert kept["frames"] == 5  # the clips have 8 frames at 5 a second, not 16
    assert load_system(folder, device="cpu").sampler.prediction_scale == kept["chosen"]["sampler"]["prediction_scale"]
    assert (tmp_path / "run" / "calibration" / "calibration.html").is_file()
    image = clips / "test" / "00000.mp4"
    sample.run(
        [
            "--model",
            str(tmp_path / "run"),
            "--image",
            str(image),
            "--prompt",
            "a star",
            "--frames",
            "2",
            "--output",
            str(tmp_path / "s"),
        ]
    )

    options = options[:-2]
    train.run([*options, "--output", str(tmp_path / "without"), "--no-calibration"])
    assert not (tmp_path / "without" / "calibration").exists()
    few = tmp_path / "few"
    shutil.copytree(clips / "test", few)
    for number in (1, 2, 3):
        (few / f"0000{number}.mp4").unlink()
    options[options.index("--data.validation-path") + 1] = str(few)
    train.run([*options, "--output", str(tmp_path / "third")])
    assert "not calibrated: " in capsys.readouterr().out and (tmp_path / "third" / "model" / "system.json").is_file()
