"""`study report` and `study export` of a study with known votes, and what `study serve` refuses."""

from __future__ import annotations

import csv
import json
import socket
from pathlib import Path

import pytest

from contrastive_i2v.cli.study import ServeOptions, _method_names, run, serve
from contrastive_i2v.data.shapes import ShapesConfig, render_scene, sample_scene
from contrastive_i2v.data.video import write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.study.questions import QuestionName, Side
from contrastive_i2v.evaluation.study.store import Design, Store, StudyPair, Vote

QUALITY_FOR_A = {"p1": 3, "p2": 2, "p3": 0}  # of 3 raters; p4 has one vote, for A


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three raters, four pairs, the last unfinished; Ana changed one vote; faithfulness was asked of one pair."""
    path = tmp_path / "study.sqlite"
    names = [f"p{i}" for i in range(1, 5)]
    pairs = tuple(StudyPair(name=name, caption="a, b", sha256_a="1", sha256_b="2") for name in names)
    store = Store(
        path, Design(a="ours", b="theirs", seed=3, raters=3, questions=("quality", "faithfulness"), pairs=pairs)
    )

    def say(rater: str, pair: str, choice: Side, question: QuestionName = "quality", *reasons: str) -> None:
        left: Side = "b" if rater == "Ben" else "a"
        store.record(
            Vote(rater=rater, pair=pair, question=question, left=left, choice=choice, reasons=reasons or ("sharpness",))
        )

    for rater in ("Ana", "Ben", "Cyd"):
        store.join(rater)
    say("Ana", "p3", "a")
    for pair, count in QUALITY_FOR_A.items():
        for number, rater in enumerate(("Ana", "Ben", "Cyd")):
            say(rater, pair, "a" if number < count else "b")
    say("Ben", "p4", "a", "quality", "frame_consistency", "amount_of_motion")
    for rater in ("Ana", "Ben", "Cyd"):
        say(rater, "p1", "b", "faithfulness", "temporal_alignment")
    store.close()
    return path


def test_report_prints_the_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["report", "--output", str(study)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # quality: p1 3-0, p2 2-1, p3 0-3, p4 1-0. Wilson for 3 of 4: [0.3006, 0.9544]; for 0 of 1: [0, 0.7935]
    # kappa over p1 .. p3: P = (1 + 1/3 + 1) / 3 = 7/9, P_e = (25 + 16) / 81; (63 - 41) / (81 - 41) = 0.55
    # left: Ana 2 of 3, Ben (left is B) 1 of 4, Cyd 1 of 3; 4 of 10
    for line in (
        "A = ours",
        "B = theirs",
        "4 pairs, 13 of 24 votes, by 3 of 3 raters",
        "Quality Faithfulness",
        "pairs won by A / tied / by B 3 / 0 / 1 0 / 0 / 1",
        "the same, Wilson's interval 75.0 % [30.1, 95.4] 0.0 % [0.0, 79.3]",
        "preferred neither, by Wilson's interval neither, by Wilson's interval",
        "agreement: complete / partial / split 2 / 0 / 1 1 / 0 / 0",
        "Fleiss' kappa 0.550 –",
        "votes for the left video 40.0 % [16.8, 68.7] 33.3 % [6.1, 79.2]",
        "Quality, why for A for B",
        "Sharpness 5 4",
        "Amount of motion 1 0",
        "What happens 0 3",
        "Quality: 1 of 4 pairs have fewer than 3 votes and count with those they have.",
        "Faithfulness: 3 of 4 pairs have fewer than 3 votes and count with those they have; 3 have none and are left "
        "out.",
        "Faithfulness: Fleiss' kappa is undefined, as every vote names the same method.",
    ):
        assert line in lines, line
    assert sum(line.startswith("win rate of A, ties half 75.0 % [") for line in lines) == 1
    assert lines[-1] == str(study.with_suffix(".json"))


def test_report_writes_json_that_any_reader_takes(study: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "result.json"
    run(["report", "--output", str(study), "--json", str(path)])
    values = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    quality, faithfulness = values["results"]
    assert (values["a"], values["b"], values["pairs"], values["raters_wanted"]) == ("ours", "theirs", 4, 3)
    assert values["votes_by_rater"] == {"Ana": 4, "Ben": 5, "Cyd": 4}
    assert (quality["a_wins"], quality["b_wins"], quality["unfinished"]) == (3, 1, 1)
    assert quality["kappa"] == pytest.approx(0.55) and faithfulness["kappa"] is None
    assert quality["reasons"]["sharpness"] == {"a": 5, "b": 4}
    assert faithfulness["win_rate_a"] == {"value": 0.0, "low": None, "high": None}  # one pair


def test_export_has_a_row_a_vote(study: Path) -> None:
    run(["export", "--output", str(study)])
    with study.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13
    (row,) = [row for row in rows if (row["rater"], row["pair"]) == ("Ben", "p4")]
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "rater": "Ben",
        "pair": "p4",
        "question": "quality",
        "choice": "ours",
        "left": "theirs",
        "reasons": "frame_consistency amount_of_motion",
        "counts": "1",
    }
    run(["export", "--output", str(study), "--history"])
    with study.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        replaced = [row for row in csv.DictReader(file) if row["counts"] == "0"]
    assert [(row["rater"], row["pair"], row["choice"]) for row in replaced] == [("Ana", "p3", "ours")]


def test_what_serve_refuses(tmp_path: Path) -> None:
    frames = render_scene(sample_scene(ShapesConfig(), "test", 0), frames=3, size=32)
    for method in ("x", "y"):
        write_video(tmp_path / method / "clip.mp4", frames, 5.0)
    folders = ["serve", "--a", str(tmp_path / "x"), "--b", str(tmp_path / "y"), "--output", str(tmp_path / "s.sqlite")]
    with pytest.raises(InputError, match=r"x/clip\.mp4: no caption"):
        run(folders)
    with pytest.raises(InputError, match="--raters 0: expected 1 or more"):
        run([*folders, "--raters", "0"])
    with pytest.raises(InputError, match="--questions quality quality: expected each at most once"):
        run([*folders, "--questions", "quality", "quality"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = ServeOptions(
            a=tmp_path / "x", b=tmp_path / "y", output=tmp_path / "s.sqlite", questions=("quality",), port=port
        )
        with pytest.raises(InputError, match=f"--port {port}: can't listen there .*--port 0 takes any free port"):
            serve(options)
    with pytest.raises(InputError, match=r"holds a study of A = x and B = y that differs: its seed = 0, not 1"):
        run([*folders, "--questions", "quality", "--seed", "1"])
    with pytest.raises(InputError, match=r"nowhere\.sqlite: no such study"):
        run(["report", "--output", str(tmp_path / "nowhere.sqlite")])


def test_method_names_start_where_the_folders_differ() -> None:
    assert _method_names(Path("/runs/one/videos"), Path("/runs/two/videos")) == ("one/videos", "two/videos")
    assert _method_names(Path("/runs/one"), Path("/runs/two")) == ("one", "two")
    assert _method_names(Path("/same"), Path("/same")) == ("A", "B")
