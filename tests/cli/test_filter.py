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


@pytest.mark.parametrize(
    ("command", "output", "file"),
    [
        (["filter", "--workers", "0"], "scores.parquet", "scores.skipped.csv"),
        (["encode", "--model", "tiny", "--workers", "0"], "shards", "shards/skipped.csv"),
    ],
)
def test_where_no_clip_is_left_all_are_in_a_file(
    tmp_path: Path, command: list[str], output: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(7):
        (tmp_path / f"{n}.mp4").write_bytes(b"no video")
        (tmp_path / f"{n}.txt").write_text("broken")
    (tmp_path / "z.mp4").write_bytes(b"without a caption")
    assert main([*command, "--data.path", str(tmp_path), "--output", str(tmp_path / output)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: none of the 7 clips can be used: ") and said.endswith(
        f"all of them are in {tmp_path / file}"
    )
    assert len((tmp_path / file).read_text().splitlines()) == 1 + 8


def test_another_kind_of_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["filter", "--data.path", str(tmp_path), "--output", "scores.csv"])
    assert "expected a file that ends in .parquet" in capsys.readouterr().err
