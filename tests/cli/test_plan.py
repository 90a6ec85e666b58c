"""`contrastive-i2v plan` end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contrastive_i2v.cli.main import main
from contrastive_i2v.training.config import TrainConfig
from contrastive_i2v.training.plan import Planner


def test_the_table_and_what_makes_it_fit(
    train_config: TrainConfig,
    pipeline_folder: Path,
    clips: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(TrainConfig(), model=str(pipeline_folder), batch_size=2, data=train_config.data)
    needs = Planner("cuda").needs(config)
    command = ["plan", "--model", str(pipeline_folder), "--data.path", str(clips / "train"), "--batch-size", "2"]
    command += ["--data.resolution", "16", "--device", "cuda", "--output", str(train_config.output)]
    assert main([*command, "--gigabytes", f"{1 + (needs.total - 1) / 1e9:.9f}"]) == 0
    said = capsys.readouterr().out
    rows = {line[:28].strip(): line[28:] for line in said.splitlines() if len(line) > 28}
    assert f"{needs.parameters:,} parameters, {needs.trained:,} trained" in rows["weights"]
    assert f"{needs.total / 1e6:.3g} MB" in rows["peak"] and "on cuda" in rows["peak"]
    assert "mixed precision bf16" in said and "6 clips in" in rows["cache on disk"]
    assert " GB with\n  --optimizer.eight-bit" in said
    assert main([*command, "--gigabytes", "24"]) == 0
    assert "fits in 24 GB as it is" in capsys.readouterr().out
    monkeypatch.setattr(Planner, "fitting", lambda *_: ([], False))
    assert main([*command, "--gigabytes", "1"]) == 0
    assert "nothing makes it fit in 1 GB; the least it can need:" in capsys.readouterr().out
    assert not train_config.output.exists()


def test_a_probe_says_how_long_it_takes(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--model", str(pipeline_folder), "--data.resolution", "16", "--batch-size", "2"]
    assert main([*command, "--steps", "3", "--data.path", str(tmp_path / "nowhere"), "--probe", "1"]) == 0
    said = capsys.readouterr().out
    assert "s a step, 3 steps" in said and "nowhere: no such folder" in said


def test_stages_whose_start_is_not_trained_yet_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--recipe", "tiny-emu-video", "--output", str(tmp_path), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.count("parameters") == 1 and f"starts from {tmp_path / 'image'}, which isn't trained yet" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gigabytes", "much"], "--gigabytes: expected a number, 0 or more, got 'much'"),
        (["--recipe", "tiny-contrastive", "--device", "cuda", "--probe", "1"], "--probe: takes the time here, on cpu"),
        (["--device", "tpu"], "--device tpu: expected one of cpu, cuda"),
        (["--recipe", "best"], "no such recipe"),
        (["--recipe", "tiny-contrastive", "--data.resolution", "63"], "data.resolution: got 63x63"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="plans for the GPU here")
def test_what_cannot_be_planned_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    assert message in capsys.readouterr().err
