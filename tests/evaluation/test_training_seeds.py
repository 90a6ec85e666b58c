"""Forms over training seeds, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from contrastive_i2v.cli.evaluation_table import format_over_seeds
from contrastive_i2v.evaluation.report import build_page
from contrastive_i2v.evaluation.report.page import first_trainings, method_styles
from contrastive_i2v.evaluation.results import Evaluated, Interval, Metric, Report, Training
from contrastive_i2v.evaluation.suite.training_seeds import over_seeds


def metric(name: str, value: float, better: str = "lower", truth: float = math.nan, **fields: object) -> Metric:
    about = {"title": name, "group": "g", "definition": "d", "better": better, "truth": truth, **fields}
    return Metric(name=name, estimate=Interval(value=value), **about)  # type: ignore[arg-type]


def method(form: str, seed: int | None, last: float, fvd: float, motion: float) -> Evaluated:
    metrics = [
        metric("frame_mse", last / 2, per_frame=[0.0, last / 4, last / 2, last]),
        metric("fvd", fvd),
        metric("motion_ratio", motion, "truth", 1.0),
    ]
    against = "" if form == "baseline" else "baseline"
    training = None if seed is None else Training(form=form, seed=seed, against=against)
    name = form if seed is None else f"{form}-seed{seed}"
    kind = "first-frame" if seed is None else "checkpoint"
    return Evaluated(name=name, kind=kind, provenance={}, metrics=metrics, clips=[], training=training)  # type: ignore[arg-type]


def methods(
    last: Sequence[float] = (0.5, 1.4, 2.6), fvd: Sequence[float] = (4.0, 5.1, 6.0), motion: float = 1.0
) -> list[Evaluated]:
    base = [method("baseline", seed, float(seed + 1), float(seed + 5), 1.3) for seed in range(3)]
    ours = [method("ours", seed, a, b, motion) for seed, (a, b) in enumerate(zip(last, fvd, strict=True))]
    return [*ours, *base, method("still", None, 9.0, 8.0, 0.0)]


def test_numbers_and_differences_by_hand() -> None:
    baseline, ours, still = over_seeds(methods())
    assert (baseline.form, ours.form, still.form) == ("baseline", "ours", "still")
    assert (ours.seeds, still.seeds) == ([0, 1, 2], [])
    numbers = {one.title: one for one in ours.numbers}
    frames = [f"frame_mse, {which}" for which in ("frame 1", "frame 2", "frame 3", "mean")]
    assert list(numbers) == [*frames, "fvd", "motion_ratio"]
    last = numbers["frame_mse, frame 3"]
    assert last.values == [0.5, 1.4, 2.6] and last.mean == pytest.approx(1.5) and last.baseline == 2
    half = 4.303 * 0.1 / 3**0.5  # the differences are -0.5, -0.6, -0.4: deviation 0.1
    assert last.difference is not None and last.is_apart
    assert (last.difference.low, last.difference.high) == pytest.approx((-0.5 - half, -0.5 + half))
    assert all(one.difference is None for one in (*baseline.numbers, *still.numbers))
    assert numbers["motion_ratio"].truth == 1


def test_only_seeds_that_both_have_are_compared() -> None:
    first, *_ = fewer = [one for one in methods() if one.training != Training(form="baseline", seed=0)]
    assert first.training == Training(form="ours", seed=0, against="baseline")
    ours = over_seeds(fewer)[1]
    last = ours.numbers[2]
    assert last.values == [0.5, 1.4, 2.6]
    assert last.baseline == 2.5 and last.difference is not None and last.difference.value == pytest.approx(-0.5)
    alone = over_seeds([one for one in methods() if one.training and one.training.seed == 0])[1]
    gap = alone.numbers[2].difference
    assert gap is not None and gap.value == -0.5 and math.isnan(gap.low)
    assert alone.verdict == "" and not alone.numbers[2].is_apart
    assert over_seeds([method("still", None, 1.0, 1.0, 0.0)]) == []
    without = over_seeds([one for one in methods() if one.training and one.training.form == "ours"])
    assert without[0].verdict == "" and without[0].numbers[0].difference is None


@pytest.mark.parametrize(
    ("last", "fvd", "motion", "expected"),
    [
        ([0.5, 1.5, 2.5], [4.0, 5.1, 6.0], 1.05, "better"),
        ([0.5, 1.5, 2.5], [4.0, 5.1, 6.0], 0.8, "closer to the truth, but its motion is not within 15 %"),
        ([0.5, 1.5, 2.5], [4.0, 6.0, 8.0], 1.0, "not told apart"),
        ([1.5, 2.5, 3.5], [6.0, 7.0, 8.1], 1.0, "worse"),
    ],
)
def test_verdict(last: list[float], fvd: list[float], motion: float, expected: str) -> None:
    assert over_seeds(methods(last, fvd, motion))[1].verdict == expected


def test_no_verdict_without_the_video_distance() -> None:
    bare = [replace(one, metrics=[m for m in one.metrics if m.name != "fvd"]) for one in methods()]
    ours = over_seeds(bare)[1]
    assert ours.verdict == "" and ours.numbers[2].is_apart
    assert "Nothing here says what the loss does" in build_page(report(bare), Path("."))


def report(evaluated: list[Evaluated]) -> Report:
    return Report(
        title="t",
        command="c",
        created="now",
        methods=evaluated,
        extractors={},
        provenance={},
        over_seeds=over_seeds(evaluated),
    )


def test_the_printed_table_says_the_difference_in_per_cent() -> None:
    lines = format_over_seeds(report(methods([0.5, 1.5, 2.5], [4.0, 5.0, 6.0], 1.0)))
    ours = next(line for line in lines if line.startswith("| ours"))
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[1:3] == ["3", "baseline"] and cells[-1] == "better"
    assert cells[5] == "1.5 (−25.00 ± 0.00 %)" and cells[7] == "5 (−16.67 ± 0.00 %)"
    still = next(line for line in lines if line.startswith("| still"))
    assert [cell.strip() for cell in still.strip("|").split("|")][1:] == [
        "",
        "",
        "2.25",
        "4.5",
        "9",
        "4.5",
        "8",
        "0",
        "",
    ]
    assert len({len(line) for line in lines if line.startswith("|")}) == 1


def test_the_page_has_a_section_from_two_seeds_on() -> None:
    page = build_page(report(methods([0.5, 1.5, 2.5], [4.0, 5.0, 6.0], 1.0)), Path("."))
    section = page[page.index('<section id="seeds">') : page.index('<section id="provenance">')]
    assert (
        "ours <small>3 seeds, against baseline</small>" in section
        and 'class="line tone0"' in section
        and "<b>−25.00 ± 0.00 %</b>" in section
    )
    assert "<b>ours</b> is <b>better</b> than <b>baseline</b>" in page
    one_seed = build_page(report([one for one in methods() if not one.training or one.training.seed == 0]), Path("."))
    assert 'id="seeds"' not in one_seed


def test_a_forms_seeds_share_its_colour_and_the_first_is_shown() -> None:
    styles = method_styles(methods())
    assert [styles[f"ours-seed{seed}"] for seed in range(3)] == ["tone0"] * 3
    assert [styles[f"baseline-seed{seed}"] for seed in range(3)] == ["tone1"] * 3
    assert [one.name for one in first_trainings(methods())] == ["ours-seed0", "baseline-seed0", "still"]
