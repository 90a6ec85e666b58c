"""`contrastive-i2v study`: people compare two folders of videos, and what they say becomes a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.study.pairs import find_pairs
from contrastive_i2v.evaluation.study.questions import QuestionName
from contrastive_i2v.evaluation.study.server import StudyServer
from contrastive_i2v.evaluation.study.session import Session
from contrastive_i2v.evaluation.study.statistics import analyse
from contrastive_i2v.evaluation.study.store import Design, Store, StudyPair
from contrastive_i2v.evaluation.study.table import to_json, to_text
from contrastive_i2v.files import file_hash, write_whole

COLUMNS = ("rater", "pair", "question", "choice", "left", "reasons", "time", "counts")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Serve a local web page on which raters compare two folders of videos, pair by pair.

    Videos match by file name. Sides and order are random for each rater, and nothing the page shows or loads names a
    method. The same command goes on with a study that was stopped.
    """

    a: Path
    """Folder of method A's videos: MP4 (H.264 or AV1) or WebM."""
    b: Path
    """Folder of method B's."""
    output: Path = Path("study.sqlite")
    """The study's file; every vote is on the disk before the page goes on."""
    captions: Path | None = None
    """Folder with the captions: NAME.txt, metadata.csv or metadata.jsonl; None = they lie beside the videos."""
    images: Path | None = None
    """Folder of the images that the videos start from, to show above them; of a video, its first frame."""
    questions: tuple[QuestionName, ...] = ("quality", "faithfulness")
    """What to ask; faithfulness needs captions."""
    raters: int = 5
    """How many people judge each pair; a later start may raise it."""
    seed: int = 0
    """Of sides and order."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 lets phones and other machines of the network in. Raters then go on in the
    browser they began in: their name alone is not enough."""
    port: int = 8000
    """0 = any free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that raters may open this machine by, besides localhost, its own name and its addresses."""
    skip_unmatched: bool = False
    """Leave out a video without a counterpart instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Print win rates, reasons and agreement, and write them as JSON. Works while the study is served."""

    output: Path = Path("study.sqlite")
    """The study's file."""
    json: Path | None = None
    """Where the same numbers go; None = beside the study, as .json."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write every vote as a row of a CSV file."""

    output: Path = Path("study.sqlite")
    """The study's file."""
    csv: Path | None = None
    """Where the votes go; None = beside the study, as .csv."""
    history: bool = False
    """Also votes that were changed later; their column `counts` is 0."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and do what they say."""
    options = tyro.extras.subcommand_cli_from_dict(
        {"serve": ServeOptions, "report": ReportOptions, "export": ExportOptions},
        prog="contrastive-i2v study",
        description="Human preference: raters compare two folders of videos and say why (JUICE).",
        args=list(arguments),
    )
    if isinstance(options, ServeOptions):
        serve(options)
    elif isinstance(options, ReportOptions):
        report(options)
    else:
        export(options)


def serve(options: ServeOptions) -> None:
    """Serve until interrupted."""
    if options.raters < 1:
        raise InputError(f"--raters {options.raters}: expected 1 or more")
    if not options.questions or len(set(options.questions)) < len(options.questions):
        raise InputError(f"--questions {' '.join(options.questions)}: expected each at most once, and at least one")
    pairs, left_out = find_pairs(
        options.a,
        options.b,
        captions=options.captions,
        images=options.images,
        need_captions="faithfulness" in options.questions,
        skip_unmatched=options.skip_unmatched,
    )
    for skipped in left_out:
        print(f"left out: {skipped.path} ({skipped.reason})")
    a, b = _method_names(options.a, options.b)
    design = Design(
        a=a,
        b=b,
        seed=options.seed,
        raters=options.raters,
        questions=options.questions,
        pairs=tuple(
            StudyPair(
                name=pair.name,
                caption=pair.caption,
                sha256_a=file_hash(pair.a),
                sha256_b=file_hash(pair.b),
                sha256_image=file_hash(pair.image) if pair.image else "",
            )
            for pair in pairs
        ),
    )
    store = Store(options.output, design)
    try:
        server = StudyServer(
            Session(store, pairs),
            (options.host, options.port),
            allowed_hosts=options.allowed_hosts,
            say=lambda line: print(line, flush=True),
        )
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host {options.host} --port {options.port}: can't listen there ({error}); --port 0 takes any free port"
        ) from error
    asked = options.raters * len(pairs) * len(options.questions)
    print(f"study: {len(pairs)} pairs, {len(store.votes())} of {asked} votes in {options.output}")
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"open:  http://{host}:{server.server_port}  (Ctrl-C stops; every vote is kept)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(f"\nstopped with {len(store.votes())} of {asked} votes")
        print(f"next:  contrastive-i2v study report --output {options.output}")
    finally:
        server.server_close()
        store.close()


def report(options: ReportOptions) -> None:
    """Print the table and write the JSON file."""
    store = Store(options.output)
    found = (store.design, store.raters(), store.votes())
    store.close()
    results = analyse(found[0], found[2])
    print(to_text(*found, results))
    path = options.json or options.output.with_suffix(".json")
    text = json.dumps(to_json(*found, results), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(f"\n{path}")


def export(options: ExportOptions) -> None:
    """Write the CSV file."""
    store = Store(options.output)
    names = {"a": store.design.a, "b": store.design.b}
    votes = [(vote, 1) for vote in store.votes()]
    if options.history:
        votes += [(vote, 0) for vote in store.votes(history=True)]
    store.close()
    path = options.csv or options.output.with_suffix(".csv")

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for vote, counts in votes:
                row = (vote.rater, vote.pair, vote.question, names[vote.choice], names[vote.left])
                writer.writerow((*row, " ".join(vote.reasons), vote.time, counts))

    write_whole(path, write)
    print(f"{len(votes)} votes: {path}")


def _method_names(a: Path, b: Path) -> tuple[str, str]:
    """The folders' names from where they start to differ: run1/videos and run2/videos, not videos and videos."""
    parts = [folder.resolve().parts for folder in (a, b)]
    for count in range(1, max(map(len, parts))):
        names = tuple("/".join(part[-count:]) for part in parts)
        if names[0] != names[1]:
            return names[0], names[1]
    return "A", "B"
