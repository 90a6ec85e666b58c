"""`contrastive-i2v plan` end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrastive_i2v.cli.main import main


def test_the_table_and_what_makes_it_fit(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--recipe", "tiny-contrastive", "--data.path", str(clips / "train"), "--device", "cuda"]
    command += ["--output", str(tmp_path / "run")]
    assert main([*command, "--gigabytes", "1.15"]) == 0
    said = capsys.readouterr().out
    rows = {line[:28].strip(): line[28:] for line in said.splitlines() if len(line) > 28}
    assert "22 MB  5,499,556 parameters, 5,499,556 trained" in rows["weights"]
    assert "mixed precision bf16" in said and "6 clips in" in rows["cache on disk"]
    assert "fits in 1.15 GB with\n  --optimizer.eight-bit" in said
    assert main([*command, "--gigabytes", "24"]) == 0
    assert "fits in 24 GB as it is" in capsys.readouterr().out
    assert main([*command, "--gigabytes", "1"]) == 0
    assert "nothing makes it fit in 1 GB; the least it can need:" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_probe_says_how_long_it_takes(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--model", str(pipeline_folder), "--data.resolution", "16", "--batch-size", "2"]
    assert main([*command, "--steps", "3", "--data.path", str(tmp_path / "nowhere"), "--probe", "1"]) == 0
    said = capsys.readouterr().out
    assert "s a step, 3 steps" in said and "nowhere: no such folder" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gigabytes", "much"], "--gigabytes: expected a number, 0 or more, got 'much'"),
        (["--device", "tpu"], "--device tpu: expected one of cpu, cuda"),
        (["--recipe", "best"], "no such recipe"),
        (["--recipe", "tiny-contrastive", "--data.resolution", "63"], "data.resolution=63; expected a multiple of 4"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    assert message in capsys.readouterr().err
