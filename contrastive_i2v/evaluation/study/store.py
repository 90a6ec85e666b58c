"""The study's file: its design, its raters and every vote, in SQLite.

A vote is one transaction, on the disk before the rater is told so (write-ahead log, synchronous = FULL): a crash
loses none. A changed vote keeps its earlier versions in `vote_history`.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.study.questions import QuestionName, Side

APPLICATION_ID = 0x63693276  # "ci2v"
VERSION = 1
_VOTE = """
  rater INTEGER NOT NULL REFERENCES rater, pair INTEGER NOT NULL REFERENCES pair,
  question TEXT NOT NULL CHECK (question IN ('quality', 'faithfulness')),
  "left" TEXT NOT NULL CHECK ("left" IN ('a', 'b')), choice TEXT NOT NULL CHECK (choice IN ('a', 'b')),
  reasons TEXT NOT NULL CHECK (json_valid(reasons)), time TEXT NOT NULL"""
SCHEMA = (
    "CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE pair (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, caption TEXT NOT NULL, "
    "sha256_a TEXT NOT NULL, sha256_b TEXT NOT NULL, sha256_image TEXT NOT NULL)",
    "CREATE TABLE rater (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, time TEXT NOT NULL)",
    f"CREATE TABLE vote (id INTEGER PRIMARY KEY, {_VOTE}, UNIQUE (rater, pair, question))",
    f"CREATE TABLE vote_history (id INTEGER PRIMARY KEY, {_VOTE})",
    'CREATE TRIGGER keep_history AFTER UPDATE ON vote BEGIN INSERT INTO vote_history (rater, pair, question, "left", '
    'choice, reasons, time) VALUES (OLD.rater, OLD.pair, OLD.question, OLD."left", OLD.choice, OLD.reasons, OLD.time); '
    "END",
)


@dataclass(frozen=True, kw_only=True)
class StudyPair:
    """A pair as the file knows it: by content, not by place."""

    name: str
    caption: str
    sha256_a: str
    sha256_b: str
    sha256_image: str = ""


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a study asks, of whom, about which videos."""

    a: str
    """Method A's name in the report; raters never see it."""
    b: str
    seed: int
    """Of sides and order."""
    raters: int
    """How many people judge each pair."""
    questions: tuple[QuestionName, ...]
    pairs: tuple[StudyPair, ...]


@dataclass(frozen=True, kw_only=True)
class Rater:
    id: int
    key: str
    """The name without case: what decides sides and order."""
    name: str


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One answer of one rater."""

    rater: str
    pair: str
    question: QuestionName
    left: Side
    """The method that was shown on the left."""
    choice: Side
    reasons: tuple[str, ...]
    time: str = ""
    """ISO 8601, UTC; set when recorded."""


class NameTakenError(Exception):
    """A rater of that name is there already."""


class StudyFullError(Exception):
    """A new rater came when the study had all of its raters."""


class Store:
    """An open study. One process may use it from many threads, and several processes at once.

    Args:
        path: the file; it must hold a study unless `design` is given.
        design: starts a study in a file that isn't there. In one that is, it must be the study's own, but for the
            methods' names, which stay, and `raters`, which is then changed.

    Raises InputError for a file that isn't a study, and for one of another design.
    """

    def __init__(self, path: Path, design: Design | None = None) -> None:
        if design is None and not path.is_file():
            raise InputError(f"{path}: no such study; `study serve` starts one")
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"{path}: can't be opened ({error})") from error
        try:
            self._open(design)
        except sqlite3.Error as error:
            self.close()
            raise InputError(f"{path}: not a study, or damaged ({error}); give another file") from error
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        self._db.close()

    def join(self, name: str, *, again: bool = True) -> Rater:
        """The rater of that name (whatever its case), new if there is none.

        Raises StudyFullError, and NameTakenError for a rater who is there already if not `again`.
        """
        key = name.casefold()
        with self._transaction() as db:
            row = db.execute("SELECT id, key, name FROM rater WHERE key = ?", (key,)).fetchone()
            if row is not None and not again:
                raise NameTakenError
            if row is None:
                if db.execute("SELECT count(*) FROM rater").fetchone()[0] >= self.design.raters:
                    raise StudyFullError
                time = _now()
                done = db.execute("INSERT INTO rater (key, name, time) VALUES (?, ?, ?)", (key, name, time))
                row = (done.lastrowid, key, name)
        return Rater(id=row[0], key=row[1], name=row[2])

    def raters(self) -> list[Rater]:
        """In the order they came."""
        with self._lock:
            rows = self._db.execute("SELECT id, key, name FROM rater ORDER BY id").fetchall()
        return [Rater(id=i, key=key, name=name) for i, key, name in rows]

    def record(self, vote: Vote) -> None:
        """Keep a vote, in place of this rater's earlier one; on return it is on the disk.

        The same vote again changes nothing.
        """
        values = (vote.rater, vote.pair, vote.question, vote.left, vote.choice, json.dumps(vote.reasons), _now())
        with self._transaction() as db:
            db.execute(
                'INSERT INTO vote (rater, pair, question, "left", choice, reasons, time) SELECT rater.id, pair.id, '
                "?3, ?4, ?5, ?6, ?7 FROM rater, pair WHERE rater.name = ?1 AND pair.name = ?2 "
                "ON CONFLICT (rater, pair, question) DO UPDATE SET choice = excluded.choice, "
                "reasons = excluded.reasons, time = excluded.time "
                "WHERE choice <> excluded.choice OR reasons <> excluded.reasons",
                values,
            )

    def votes(self, rater: Rater | None = None, *, history: bool = False) -> list[Vote]:
        """The votes that count, of all raters or of one; with `history`, the replaced ones instead."""
        with self._lock:
            rows = self._db.execute(
                'SELECT rater.name, pair.name, question, "left", choice, reasons, vote.time '
                f"FROM {'vote_history' if history else 'vote'} AS vote JOIN rater ON rater.id = vote.rater "
                "JOIN pair ON pair.id = vote.pair WHERE ?1 IS NULL OR rater.id = ?1 ORDER BY vote.id",
                (rater.id if rater else None,),
            ).fetchall()
        names = [field.name for field in fields(Vote)]
        return [Vote(**dict(zip(names, (*row[:5], tuple(json.loads(row[5])), row[6]), strict=True))) for row in rows]

    def _open(self, design: Design | None) -> None:
        db = self._db
        db.execute("PRAGMA foreign_keys = ON")
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] or design is None:
                raise InputError(f"{self.path}: not a study; give another file")
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            if design and not db.execute("PRAGMA application_id").fetchone()[0]:
                self._create(design)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                raise InputError(f"{self.path}: a study of format {version}; this version reads format {VERSION}")
            self.design, self.secret = self._read()
            if design:
                self._check_same(design)
                db.execute("UPDATE study SET value = ? WHERE key = 'raters'", (json.dumps(design.raters),))
                self.design, _ = self._read()

    def _create(self, design: Design) -> None:
        for statement in SCHEMA:
            self._db.execute(statement)
        settings = asdict(design) | {"secret": secrets.token_hex(16), "created": _now()}
        pairs = settings.pop("pairs")
        self._db.executemany("INSERT INTO study VALUES (?, ?)", [(k, json.dumps(v)) for k, v in settings.items()])
        self._db.executemany(
            "INSERT INTO pair (name, caption, sha256_a, sha256_b, sha256_image) "
            "VALUES (:name, :caption, :sha256_a, :sha256_b, :sha256_image)",
            pairs,
        )
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _read(self) -> tuple[Design, str]:
        settings: dict[str, Any] = {
            key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM study")
        }
        columns = [field.name for field in fields(StudyPair)]
        rows = self._db.execute(f"SELECT {', '.join(columns)} FROM pair ORDER BY id")
        return Design(
            a=settings["a"],
            b=settings["b"],
            seed=settings["seed"],
            raters=settings["raters"],
            questions=tuple(settings["questions"]),
            pairs=tuple(StudyPair(**dict(zip(columns, row, strict=True))) for row in rows),
        ), settings["secret"]

    def _check_same(self, design: Design) -> None:
        found = _first_difference(self.design, design)
        if found:
            raise InputError(
                f"{self.path}: holds a study of A = {self.design.a} and B = {self.design.b} that differs: {found}. "
                f"Give its own folders and options to go on with it, or another --output to start a new one"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a failed COMMIT may have ended it already
                    self._db.execute("ROLLBACK")
                raise


def _first_difference(stored: Design, given: Design) -> str:
    """What makes two designs different studies, in words; "" = nothing."""
    for key in ("seed", "questions"):
        if getattr(stored, key) != getattr(given, key):
            return f"its {key} = {_words(getattr(stored, key))}, not {_words(getattr(given, key))}"
    mine, theirs = ({pair.name: pair for pair in one.pairs} for one in (stored, given))
    if missing := sorted(mine.keys() ^ theirs.keys()):
        where = "only the study" if missing[0] in mine else "only these folders"
        return f"{where} has the pair {missing[0]}"
    titles = {"caption": "caption", "sha256_a": "video of A", "sha256_b": "video of B", "sha256_image": "image"}
    for name, pair in mine.items():
        for key, title in titles.items():
            if getattr(pair, key) != getattr(theirs[name], key):
                return f"the {title} of pair {name} is another"
    return ""


def _words(value: int | Sequence[str]) -> str:
    return str(value) if isinstance(value, int) else " ".join(value)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
