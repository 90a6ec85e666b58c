"""An evaluation's report.json: it is read, and written again means the same, or an InputError says what is wrong."""

from __future__ import annotations

import random
from pathlib import Path

from fuzzing import mutate

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.results import Evaluated, Extractor, Interval, Metric, Report, load_report, save_report

WORDS = (
    b"[" * 3000, b"[", b"]", b"{", b"}", b'"', b":", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"9" * 5000,
    b"-1", b'"format"', b'"\\ud800"', b'""', b"0.5",
)  # fmt: skip


class Target:
    def __init__(self, folder: Path) -> None:
        self.file, self.again = folder / "report.json", folder / "again.json"
        metric = Metric(
            name="psnr",
            title="PSNR",
            group="Fidelity",
            better="higher",
            definition="10 log10(4 / MSE)",
            estimate=Interval(value=21.5, low=20.25, high=22.75),
            per_clip=[20.0, 23.0],
        )
        method = Evaluated(name="x", kind="checkpoint", provenance={"seed": "0"}, metrics=[metric], clips=[])
        network = Extractor(name="net", dimension=3, weights="package 1.0", resize="none")
        report = Report(
            title="t",
            command="c",
            created="2026",
            methods=[method],
            extractors={"net": network},
            provenance={"seed": "0"},
        )
        save_report(report, self.file)
        self.seed = self.file.read_bytes()

    def draw(self, rng: random.Random) -> bytes:
        return mutate(rng, self.seed, words=WORDS)

    def check(self, case: bytes) -> None:
        self.file.write_bytes(case)
        try:
            report = load_report(self.file)
        except InputError as error:
            assert str(error).startswith(f"{self.file}: ") and "\n" not in str(error), str(error)
            return
        save_report(report, self.again)
        again = repr(load_report(self.again))
        assert again == repr(report).replace("-inf", "nan").replace("inf", "nan"), (
            "written again it means something else"
        )
