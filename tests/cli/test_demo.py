"""The demo end to end, very small: what it writes, that it goes on, and that it refuses another's folder."""

from __future__ import annotations

import base64
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
from contrastive_i2v.evaluation.compare import measure

from contrastive_i2v.cli import demo
from contrastive_i2v.cli.demo import Options
from contrastive_i2v.cli.demo_report import describe_loss, format_table, mean_curve, training_seconds
from contrastive_i2v.cli.main import main
from contrastive_i2v.data.video import read_frames
from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import LossConfig

SMALL = "--train-clips 3 --test-clips 2 --resolution 16 --steps 4 --batch-size 4 --frames 4 --sampler-steps 2"


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


def read_results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def weights(folder: Path, run: str) -> str:
    file = folder / "runs" / run / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_results_hold_every_method_and_agree_with_the_clips(folder: Path) -> None:
    results = read_results(folder)
    assert set(results["methods"]) == {"contrastive", "baseline", "base", "still"}
    assert len(results["captions"]) == 2
    truth = torch.stack([read_frames(folder / "clips" / "test" / f"0000{i}.mp4", [0, 5, 10, 15]) for i in range(2)])
    gap = (truth[:, :1].double() - truth.double()) / 127.5
    expected = gap.square().mean(dim=(0, 2, 3, 4))
    still = results["methods"]["still"]
    assert [row["mean"] for row in still["error_by_frame"]] == pytest.approx(expected.tolist(), abs=1e-6)
    assert still["motion_ratio"]["mean"] == 0
    for form in ("contrastive", "baseline", "base"):
        assert results["methods"][form]["mean_error"]["mean"] > 0
    assert any("One seed proves nothing" in sentence for sentence in results["verdict"])


def test_forms_differ_in_the_loss_alone(folder: Path) -> None:
    assert weights(folder, "contrastive-seed0") != weights(folder, "baseline-seed0")
    logs = {
        form: [json.loads(line) for line in (folder / "runs" / f"{form}-seed0" / "log.jsonl").read_text().splitlines()]
        for form in ("contrastive", "baseline")
    }
    assert logs["contrastive"][0]["mse"] == logs["baseline"][0]["mse"]  # the same batch, noise and timesteps
    assert "contrastive/target" in logs["contrastive"][0]
    assert "contrastive/target" not in logs["baseline"][0]


def test_page_shows_playable_videos(folder: Path, tmp_path: Path) -> None:
    page = (folder / "index.html").read_text()
    videos = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
    assert len(videos) == 2 * 3  # clips, and truth / contrastive / baseline
    path = tmp_path / "first.mp4"
    path.write_bytes(base64.b64decode(videos[0]))
    shown = read_frames(path, [0, 3])  # 16 pixels, 12 times as large
    truth = read_frames(folder / "clips" / "test" / "00000.mp4", [0, 15])
    large = truth.repeat_interleave(12, dim=2).repeat_interleave(12, dim=3)
    assert (shown.float() - large.float()).abs().mean() < 6
    for caption in read_results(folder)["captions"]:
        assert caption in page


def test_commands_of_the_page_parse(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    blocks = re.findall(r"<pre>(.*?)</pre>", page)
    commands = [shlex.split(re.sub(r"<[^>]+>", "", block).replace("&#x27;", "'")) for block in blocks]
    again = next(command for command in commands if command[1] == "demo")
    model = next(command for command in commands if command[1] == "sample")
    assert str(folder) in again
    assert (Path(model[model.index("--model") + 1]) / "model_index.json").exists()
    assert Path(model[model.index("--image") + 1]).exists()


def test_same_command_goes_on_and_repeats_the_numbers(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_results(folder)
    kept = weights(folder, "contrastive-seed0"), weights(folder, "baseline-seed0")
    shutil.rmtree(folder / "runs" / "contrastive-seed0" / "model")  # stopped after the last checkpoint
    shutil.rmtree(folder / "runs" / "baseline-seed0")  # stopped before the first
    (folder / "clips" / "train" / "00001.mp4").unlink()
    assert main(arguments) == 0
    assert (weights(folder, "contrastive-seed0"), weights(folder, "baseline-seed0")) == kept
    assert read_results(folder)["methods"] == before["methods"]

    capsys.readouterr()
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count("done before") == 2
    assert [line[:5] for line in shown.splitlines() if line.startswith("[")] == [f"[{i}/5]" for i in range(1, 6)]
    assert shown.splitlines()[-1] == f"page: {folder / 'index.html'}"


def test_more_seeds_and_forms_are_added(folder: Path, arguments: list[str]) -> None:
    kept = weights(folder, "contrastive-seed0")
    before = read_results(folder)["methods"]["contrastive"]["mean_error"]["by_seed"]
    assert main([*arguments, "--seeds", "2", "--forms", "contrastive", "baseline", "literal"]) == 0
    results = read_results(folder)
    after = results["methods"]["contrastive"]["mean_error"]["by_seed"]
    assert weights(folder, "contrastive-seed0") == kept
    assert after[:1] == before
    assert len(after) == 2
    assert after[1] != after[0]
    assert len(results["methods"]["literal"]["mean_error"]["by_seed"]) == 2
    assert not any("One seed" in sentence for sentence in results["verdict"])


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
    assert "multiple of 2" in capsys.readouterr().err
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


def test_describe_loss() -> None:
    assert describe_loss(LossConfig(target_weight=0)) == "diffusion loss alone"
    text = describe_loss(LossConfig(target_weight=0.2, input_weight=None, temperature=0.5, normalize=False))
    assert "0.2 × cross entropy among target latents + 1/D × cross entropy among input latents" in text
    assert "dot product, temperature 0.5" in text


def test_log_helpers() -> None:
    first = [{"step": 2, "mse": 1.0, "samples_per_second": 8.0}, {"step": 4, "mse": float("nan")}]
    second = [{"step": 2, "mse": 3.0}, {"step": 4, "mse": 5.0}]
    assert mean_curve([first, second], "mse") == [(2, 2.0), (4, 5.0)]
    assert mean_curve([first], "nothing") == []
    rows = [*first[:1], {"step": 6, "samples_per_second": 4.0}]
    assert training_seconds(rows, batch_size=4) == 2 * 4 / 8 + 4 * 4 / 4


def test_table_lines_up() -> None:
    truth = torch.rand(2, 3, 3, 4, 4)
    lines = format_table({"contrastive": measure([truth], truth), "still": measure([truth], truth)}).splitlines()
    assert lines[0].split() == ["frame", "1", "frame", "2", "mean", "error", "motion", "ratio"]
    assert lines[1].index("0.0000") == lines[2].index("0.0000") == lines[0].index("frame 1")
