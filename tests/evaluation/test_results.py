"""report.json holds a whole report: what is read is what was written, and anything else is named."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.results import (
    Difference,
    Evaluated,
    EvaluatedClip,
    Extractor,
    Interval,
    LatentMap,
    Metric,
    Report,
    load_report,
    save_report,
)


def full_report() -> Report:
    """Every field holds something."""
    metric = Metric(
        name="psnr",
        title="PSNR",
        group="Fidelity",
        better="higher",
        definition="10 log10(4 / MSE)",
        estimate=Interval(value=21.5, low=20.25, high=22.75),
        truth=30.0,
        unit="dB",
        samples=2,
        sample="pair",
        extractor="net",
        warning="few",
        per_clip=[20.0, 23.0],
        per_frame=[25.0, 18.0],
        per_frame_truth=[30.0, 30.0],
        slope=Interval(value=-7.0, low=-8.0, high=-6.0),
    )
    method = Evaluated(
        name="naïve \u2028 name",
        kind="checkpoint",
        provenance={"seed": "0"},
        metrics=[metric],
        clips=[EvaluatedClip(name="a", caption='"quoted"', video="a.mp4", truth="t/a.mp4")],
        maps=[LatentMap(method="PCA", points=[[[0.0, 1.0]]], truth=[[[0.5, 1.5]]], explained=[0.75, 0.125])],
        seconds=1.5,
    )
    difference = Difference(metric="psnr", a="x", b="y", estimate=Interval(value=1.0, low=0.5, high=1.5), better="a")
    network = Extractor(name="net", dimension=3, weights="package 1.0", resize="none", stands_in_for="I3D")
    return Report(
        title="title",
        command="evaluate",
        created="2025-01-02T03:04:05Z",
        methods=[method],
        extractors={"net": network},
        provenance={"data": "folder"},
        differences=[difference],
        warnings=["a warning"],
    )


def rewritten(path: Path, *keys: str | int, value: Any) -> Path:
    """The saved report with one value changed."""
    values = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    save_report(full_report(), path)
    return path


def test_what_is_read_is_what_was_written(saved: Path) -> None:
    assert load_report(saved) == full_report()


def test_nan_is_null_in_the_file_and_nan_again_when_read(tmp_path: Path) -> None:
    whole = full_report()
    metric = replace(
        whole.methods[0].metrics[0],
        estimate=Interval(value=3.0),
        truth=math.nan,
        per_frame=[math.nan, 1.0],
        slope=None,
    )
    method = replace(
        whole.methods[0], metrics=[metric], maps=[LatentMap(method="PCA", points=[[[math.nan, 1.0]]], truth=[])]
    )
    path = tmp_path / "report.json"
    save_report(replace(whole, methods=[method]), path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    values = json.loads(path.read_text(), parse_constant=refuse)
    assert values["methods"][0]["metrics"][0]["per_frame"] == [None, 1.0]
    found = load_report(path).methods[0].metrics[0]
    assert found.estimate.value == 3.0
    assert math.isnan(found.estimate.low) and math.isnan(found.estimate.high) and math.isnan(found.truth)
    assert math.isnan(found.per_frame[0]) and found.per_frame[1] == 1.0
    assert found.slope is None
    assert math.isnan(load_report(path).methods[0].maps[0].points[0][0][0])


def test_an_integer_is_read_as_a_float(saved: Path) -> None:
    rewritten(saved, "methods", 0, "metrics", 0, "estimate", "value", value=21)
    found = load_report(saved).methods[0].metrics[0].estimate.value
    assert found == 21.0 and isinstance(found, float)


@pytest.mark.parametrize("content", ["", "[1, 2]", "null", '{"format": 2}', "{}", "\x00"])
def test_a_file_that_is_no_report_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"report\.json"):
        load_report(path)


def test_a_truncated_or_absent_file_is_named(saved: Path, tmp_path: Path) -> None:
    text = saved.read_text()
    for end in (1, len(text) // 2, len(text) - 3):
        saved.write_text(text[:end])
        with pytest.raises(InputError, match=r"report\.json: not JSON"):
            load_report(saved)
    with pytest.raises(InputError, match=r"absent\.json: can't be read"):
        load_report(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("methods", 0, "metrics", 0, "estimate", "value"), "abc"),
        (("methods", 0, "metrics", 0, "estimate", "value"), [1.0]),
        (("methods", 0, "metrics", 0, "per_clip"), ["x"]),
        (("methods", 0, "metrics", 0, "better"), "up"),
        (("methods", 0, "metrics", 0, "title"), None),
        (("methods",), {}),
        (("surprise",), 1),
    ],
)
def test_a_wrong_value_is_an_input_error(saved: Path, keys: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(InputError, match=r"report\.json"):
        load_report(rewritten(saved, *keys, value=value))


def test_a_report_that_cannot_be_written_leaves_the_old_one(saved: Path) -> None:
    before = saved.read_text()
    with pytest.raises(TypeError):
        save_report(replace(full_report(), provenance={"x": object()}), saved)  # type: ignore[dict-item]
    assert saved.read_text() == before
    assert [p.name for p in saved.parent.iterdir()] == ["report.json"]


def test_every_field_is_in_the_file(saved: Path) -> None:
    assert json.loads(saved.read_text()) == asdict(full_report())
