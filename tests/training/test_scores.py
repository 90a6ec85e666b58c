"""The file of scores: made, gone on with, extended, and used to choose clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_i2v.data.cache import clip_key
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.data.types import Clip, NoClipLeft
from contrastive_i2v.data.video import write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.training import scores
from contrastive_i2v.training.batches import read_clips
from contrastive_i2v.training.config import DataConfig
from contrastive_i2v.training.scores import Condition, ScoresConfig, ScoreTable, score_clips

CONFIG = ScoresConfig(side=32)


def write(folder: Path, name: str, step: int, frames: int = 12) -> None:
    noise = torch.randint(0, 256, (1, 3, 32, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_video(folder / f"{name}.mp4", torch.cat([noise.roll(step * i, dims=-1) for i in range(frames)]), 10.0)
    (folder / f"{name}.txt").write_text(f"a ball {name}")


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """moving, moving2 (the same), still, and one that can't be read."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, step in (("moving", 3), ("moving2", 3), ("still", 0)):
        write(folder, name, step)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "broken.txt").write_text("broken")
    return read_folder(folder)[0]


def test_a_row_a_clip_and_nothing_is_measured_twice(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scores.parquet"
    skipped = score_clips(clips, CONFIG, file, progress=False)
    assert [one.path.name for one in skipped] == ["broken.mp4"]
    table = ScoreTable(file)
    assert [table.row(clip) for clip in clips] == [None, 0, 1, 2]
    assert table.columns["duration"] == pytest.approx([1.2] * 3) and table.columns["height"] == [32.0] * 3
    assert table.columns["motion"][0] > 0.1 > table.columns["motion"][2]
    assert table.columns["duplicate"] == [0, 1, 0] and "caption" not in table.names
    write(clips[0].path.parent, "later", 1)
    more = read_folder(clips[0].path.parent)[0]
    measured: list[str] = []
    real = scores.measure

    def measure(clip: Clip, config: ScoresConfig) -> Any:
        measured.append(clip.path.stem)
        return real(clip, config)

    monkeypatch.setattr(scores, "measure", measure)
    score_clips(more, CONFIG, file, progress=False)
    assert measured == ["broken", "later"] and [ScoreTable(file).row(clip) for clip in more] == [None, 0, 1, 2, 3]
    with pytest.raises(InputError, match="scores of other options"):
        score_clips(more, replace(CONFIG, side=48), file, progress=False)


@pytest.mark.fault("scoring a dataset is interrupted", "the same command goes on after the last part, to the same file")
def test_it_goes_on_after_the_last_part(clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, file = tmp_path / "whole.parquet", tmp_path / "scores.parquet"

    def similarity(frames: Tensor, caption: str) -> float:
        assert len(frames) == 8 and frames.abs().max() <= 1 and frames.min() < -0.5
        return float(len(caption))

    score_clips(clips, CONFIG, whole, similarity=similarity, progress=False)
    monkeypatch.setattr(scores, "CLIPS_A_PART", 1)
    with pytest.raises(KeyboardInterrupt):
        score_clips(clips, CONFIG, file, similarity=Interrupted(similarity, after=2), progress=False)
    assert not file.exists() and len(list((tmp_path / "scores.parquet.parts").glob("*.parquet"))) == 2
    counted = Interrupted(similarity, after=9)
    score_clips(clips, CONFIG, file, similarity=counted, progress=False)
    assert counted.calls == 1 and not (tmp_path / "scores.parquet.parts").exists()
    assert ScoreTable(file).columns == ScoreTable(whole).columns
    assert ScoreTable(file).columns["caption"] == [len(clip.caption) for clip in clips[1:]]


class Interrupted:
    """Ctrl-C after some calls."""

    def __init__(self, function: Any, after: int) -> None:
        self.function, self.after, self.calls = function, after, 0

    def __call__(self, *arguments: Any) -> float:
        if self.calls == self.after:
            raise KeyboardInterrupt
        self.calls += 1
        return float(self.function(*arguments))


def test_training_takes_the_clips_that_meet_the_conditions(clips: list[Clip], tmp_path: Path) -> None:
    file = tmp_path / "scores.parquet"
    score_clips(clips, CONFIG, file, progress=False)
    write(clips[0].path.parent, "unscored", 1)

    def read(**options: Any) -> tuple[list[str], dict[str, str]]:
        config = DataConfig(path=clips[0].path.parent, scores=file, **options)
        kept, skipped = read_clips(config, seed=0, skipped_file=tmp_path / "skipped.csv", progress=False)
        return [clip.path.stem for clip in kept], {one.path.stem: one.reason for one in skipped}

    kept, skipped = read(where=("motion>0.1", "duplicate == 0"))
    assert kept == ["moving"]
    assert skipped["moving2"] == "duplicate is 1, not duplicate == 0"
    assert skipped["still"].startswith("motion is 0") and "has no scores" in skipped["unscored"] + skipped["broken"]
    assert read(keep=0.34)[0] == ["moving"]
    with pytest.raises(NoClipLeft, match="motion is"):
        read(where=("motion>1",))
    with pytest.raises(InputError, match="has no score speed; expected one of duration, fps"):
        read(where=("speed>1",))


def test_emus_subset_reads_no_video_where_there_are_scores(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scores.parquet"
    score_clips(clips, CONFIG, file, progress=False)
    monkeypatch.setattr("contrastive_i2v.training.selection.probe_clip", None)
    looked: list[Clip] = []
    monkeypatch.setattr(scores, "clip_key", lambda clip: looked.append(clip) or clip_key(clip))
    config = DataConfig(path=clips[0].path.parent, scores=file, keep=0.5)
    kept, _ = read_clips(config, seed=0, skipped_file=tmp_path / "skipped.csv")
    assert [clip.path.stem for clip in kept] == ["moving", "moving2"]
    assert (tmp_path / "scores.csv").read_text().count("\n") == 4
    assert len(looked) == len(set(looked)) == len(clips)  # each file once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("motion > 0.01", Condition("motion", ">", 0.01)),
        ("cuts==0", Condition("cuts", "==", 0.0)),
        (" a<=-1e3 ", Condition("a", "<=", -1000.0)),
    ],
)
def test_conditions(text: str, expected: Condition) -> None:
    assert Condition.parse(text) == expected
    assert [expected.holds(expected.value + d) for d in (-1, 0, 1)] == {
        ">": [False, False, True],
        "==": [False, True, False],
        "<=": [True, True, False],
    }[expected.sign]
    assert not Condition("a", "<", 1).holds(float("nan"))


@pytest.mark.parametrize("text", ["motion", "motion > fast", "motion > nan", "a > 1 and b > 2", "__import__('os')", ""])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no condition; expected NAME<VALUE"):
        DataConfig(scores=Path("scores.parquet"), where=(text,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": ("cuts==0",)}, "where: conditions on scores, of which there are none"),
        ({"scores": Path("a.parquet")}, "scores: nothing uses them"),
        ({"scores": Path("a.parquet"), "keep": 0.5, "clip": "a/b"}, "clip: is for keep without scores"),
        ({"scores": Path("a.parquet"), "where": ("cuts==0",), "shards": "x"}, "expected shards alone"),
    ],
)
def test_options_that_nothing_would_use_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataConfig(**options)


@pytest.mark.fault("a file of scores is another kind of Parquet, or none", "it is refused by name")
def test_files_that_are_no_scores_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    parquet.write_table(pyarrow.table({"key": ["a"]}), tmp_path / "b.parquet")
    columns = {name: ["a"] for name in scores.ABOUT}
    parquet.write_table(pyarrow.table({**columns, "motion": ["fast"]}), tmp_path / "c.parquet")
    for name, message in (("a", "not a readable parquet"), ("b", "a column each of key"), ("c", "isn't numbers")):
        with pytest.raises(InputError, match=message):
            ScoreTable(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match="not a readable parquet"):
        ScoreTable(tmp_path / "none.parquet")
