"""The study's file: one vote a question, history, resuming, and files that aren't it."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from pathlib import Path

import pytest

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.study.questions import Side
from contrastive_i2v.evaluation.study.store import Design, Store, StudyFullError, Vote


def vote(choice: Side = "a", *reasons: str, rater: str = "Ana", pair: str = "00000") -> Vote:
    reasons = reasons or ("sharpness",)
    return Vote(rater=rater, pair=pair, question="quality", left="b", choice=choice, reasons=reasons)


def without_time(votes: list[Vote]) -> list[Vote]:
    assert all(one.time.endswith("+00:00") for one in votes)
    return [dataclasses.replace(one, time="") for one in votes]


def test_votes_survive_closing(store: Store, tmp_path: Path) -> None:
    ana = store.join("Ana")
    store.join("Ben")
    store.record(vote("b", "sharpness", "amount_of_motion"))
    store.record(vote(rater="Ben"))
    store.close()
    again = Store(tmp_path / "study.sqlite")
    assert without_time(again.votes()) == [vote("b", "sharpness", "amount_of_motion"), vote(rater="Ben")]
    assert without_time(again.votes(ana)) == [vote("b", "sharpness", "amount_of_motion")]
    assert [rater.name for rater in again.raters()] == ["Ana", "Ben"]
    assert again.secret == store.secret
    again.close()


def test_a_changed_vote_replaces_and_is_remembered(store: Store) -> None:
    store.join("Ana")
    for one in (vote("a"), vote("b"), vote("b"), vote("b", "amount_of_motion")):
        store.record(one)
    assert without_time(store.votes()) == [vote("b", "amount_of_motion")]
    assert without_time(store.votes(history=True)) == [vote("a"), vote("b")]  # the same again is no change


def test_the_file_itself_refuses_a_second_vote_and_nonsense(store: Store, tmp_path: Path) -> None:
    store.join("Ana")
    store.record(vote())
    db = sqlite3.connect(tmp_path / "study.sqlite")
    db.execute("PRAGMA foreign_keys = ON")
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    insert = (
        "INSERT INTO vote (rater, pair, question, \"left\", choice, reasons, time) VALUES (?, ?, ?, ?, ?, '[]', '')"
    )
    second, question = (1, 1, "quality", "a", "a"), (1, 1, "beauty", "a", "a")
    choice, rater = (1, 2, "quality", "a", "left"), (9, 2, "quality", "a", "a")
    for row in (second, question, choice, rater):
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(insert, row)
    db.close()


def test_names_are_one_rater_whatever_their_case_and_full_is_full(store: Store, design: Design) -> None:
    raters = [store.join(name) for name in ("Ana", "Ben", "Cyd", "Dee", "Eva")]
    assert store.join("ANA") == raters[0]
    with pytest.raises(StudyFullError):
        store.join("Fay")
    store.close()
    more = Store(store.path, dataclasses.replace(design, raters=6))
    assert more.join("Fay").id == 6 and more.design.raters == 6
    more.close()


@pytest.mark.fault("five raters vote at the same time", "every vote counts once")
def test_many_threads_vote_at_once(store: Store) -> None:
    def rate(name: str) -> None:
        store.join(name)
        for pair in store.design.pairs:
            for choice in ("a", "b"):
                store.record(vote(choice, rater=name, pair=pair.name))  # type: ignore[arg-type]

    threads = [threading.Thread(target=rate, args=(name,)) for name in ("Ana", "Ben", "Cyd", "Dee", "Eva")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(one.rater, one.pair, one.choice) for one in store.votes()} == {
        (name, pair.name, "b") for name in ("Ana", "Ben", "Cyd", "Dee", "Eva") for pair in store.design.pairs
    }
    assert len(store.votes()) == len(store.votes(history=True)) == 20


def test_other_folders_are_another_study(store: Store, design: Design) -> None:
    store.close()
    first, *rest = design.pairs
    changes: list[tuple[dict[str, object], str]] = [
        ({"seed": 1}, "its seed = 0, not 1"),
        ({"questions": ("quality",)}, "its questions = quality faithfulness, not quality"),
        ({"pairs": tuple(rest)}, "only the study has the pair 00000"),
        ({"pairs": (*design.pairs, dataclasses.replace(first, name="9"))}, "only these folders has the pair 9"),
        ({"pairs": (dataclasses.replace(first, sha256_b="x"), *rest)}, "the video of B of pair 00000 is another"),
        ({"pairs": (dataclasses.replace(first, caption="x"), *rest)}, "the caption of pair 00000 is another"),
    ]
    for change, message in changes:
        with pytest.raises(InputError, match=f"study.sqlite: holds a study of A = zebra.*{message}"):
            Store(store.path, dataclasses.replace(design, **change))  # type: ignore[arg-type]
    swapped = [dataclasses.replace(p, sha256_a=p.sha256_b, sha256_b=p.sha256_a) for p in design.pairs]
    with pytest.raises(InputError, match="the video of A of pair 00000 is another"):
        Store(store.path, dataclasses.replace(design, pairs=tuple(swapped)))


@pytest.mark.fault("a study's file is another database, or none", "it is refused by name")
def test_files_that_are_no_study(tmp_path: Path, design: Design) -> None:
    path = tmp_path / "x.sqlite"
    with pytest.raises(InputError, match="no such study; `study serve` starts one"):
        Store(path)
    path.write_text("hello, this is not a database at all")
    with pytest.raises(InputError, match="x.sqlite: not a study, or damaged"):
        Store(path, design)
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE photos (name TEXT)")
    other.close()
    with pytest.raises(InputError, match="x.sqlite: not a study; give another file"):
        Store(path, design)
    newer = Store(tmp_path / "newer.sqlite", design)
    newer.close()
    db = sqlite3.connect(tmp_path / "newer.sqlite")
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(InputError, match="a study of format 2; this version reads format 1"):
        Store(tmp_path / "newer.sqlite")


@pytest.mark.fault("a study is killed as it starts", "the next start begins it anew")
def test_an_empty_file_of_a_killed_start_is_started_anew(tmp_path: Path, design: Design) -> None:
    path = tmp_path / "study.sqlite"
    path.touch()
    store = Store(path, design)
    assert store.design == design
    store.close()
