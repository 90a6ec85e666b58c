"""`filter` from the command line, and its scores in a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrastive_i2v.cli.main import main


def test_scores_and_a_page_and_what_was_left_out(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "zz.mp4").write_bytes(b"no video")
    (clips / "zz.txt").write_text("broken")
    output = tmp_path / "out" / "scores.parquet"
    command = ["filter", "--data.path", str(clips), "--output", str(output), "--workers", "0", "--side", "32"]
    assert main(command) == 0
    assert "zz.mp4" in capsys.readouterr().out
    assert "zz.mp4" in (tmp_path / "out" / "scores.skipped.csv").read_text()
    page = output.with_suffix(".html").read_text()
    assert 'id="overlay"' in page and "data:image/jpeg" in page
    options = ["--model", "tiny", "--data.cache-dir", str(tmp_path / "cache"), "--data.scores", str(output)]
    assert main(["encode", "--data.path", str(clips), *options, "--data.where", "cuts==0", "duration<0"]) == 2
    assert "duration is" in capsys.readouterr().err


def test_another_kind_of_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["filter", "--data.path", str(tmp_path), "--output", "scores.csv"])
    assert "expected a file that ends in .parquet" in capsys.readouterr().err
