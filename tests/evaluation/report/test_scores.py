"""The page of scores: what the bars count, and that captions are escaped."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from contrastive_i2v.evaluation.report.scores import Example, histogram, write_page


def counts(values: list[float]) -> dict[str, int]:
    drawn = histogram(values)
    assert drawn is not None
    return {text.split(": ")[0]: int(text.split(": ")[1]) for *_, text in drawn.bars}


def test_bars_count_every_finite_value() -> None:
    assert counts([0, 0, 2, 0, math.nan]) == {"0": 3, "1": 0, "2": 1}
    found = counts([0.0, 0.013, 0.5, 1.0])
    assert sum(found.values()) == 4 and found["0 to 0.025"] == 2 and found["0.975 to 1"] == 1
    assert sum(counts([0.25] * 7).values()) == 7 and sum(counts([1e6, 2e6]).values()) == 2
    assert histogram([math.nan]) is None and histogram([]) is None
    drawn = histogram([0, 0, 2])
    assert drawn is not None and drawn.bars[0][3] == 2 * drawn.bars[2][3] > drawn.bars[1][3] == 0


def test_the_page_stands_alone(tmp_path: Path) -> None:
    frame = torch.zeros(3, 400, 600, dtype=torch.uint8)
    examples = {"cuts": [Example("<script>alert(1)</script>", 0.0, frame), Example("gone", 3.0, None)], "none": []}
    columns = {"cuts": [0.0, 3.0], "none": [math.nan]}
    page = write_page(columns, examples, tmp_path / "scores.html", title="Scores of 2 clips", command="filter <x>")
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "filter &lt;x&gt;" in text
    assert text.count("data:image/jpeg;base64,") == 1 and "can&#39;t be read" in text or "can't be read" in text
    assert "No clip has one." in text and "http" not in text.replace("http://www.w3.org", "")
