"""Results files, resuming, goals and the page made from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as cli
from benchmarks import plots, report
from benchmarks.goals import CPU_GOALS, GPU_GOALS, goals_for
from benchmarks.problems import Case
from benchmarks.results import Results, case_of


def row(case: Case, provider: str, median_us: float, **more: Any) -> dict[str, Any]:
    figures = {"median_us": median_us, "p20_us": median_us * 0.9, "p80_us": median_us * 1.1, "samples": 9}
    if "speedup" in more:
        figures["speedup"] = dict.fromkeys(("p20", "median", "p80"), more.pop("speedup"))
    base = {
        "case": dataclasses.asdict(case), "provider": provider, "flop": case.flop, "bytes": case.bytes,
        "status": "timed", "gradient_error": 1e-7, "gradient_bar": 4e-7, "loss_error": 0.0, "loss_bar": 1e-6,
        "rows_checked": case.size, "called": figures,
    }  # fmt: skip
    return base | more


def about(device: str = "cpu", name: str = "Some Processor (2 threads)") -> dict[str, Any]:
    return {
        "device": {"type": device, "name": name, "cache_bytes": 1 << 25}, "threads": 2, "commit": "abc123",
        "versions": {"torch": "2.13.0"}, "date": "2026-01-02", "settings": {}, "extension": {},
    }  # fmt: skip


def results() -> Results:
    rows = []
    for size in (16, 48):
        case = Case(size=size)
        rows += [row(case, "eager", 400.0 * size), row(case, "ours:cpu", 80.0 * size, speedup=5.0)]
    case = Case(size=16, dtype="bfloat16")
    rows += [row(case, "eager", 500.0), row(case, "torch.compile", 120.0), row(case, "ours:cpu", 150.0, speedup=3.3)]
    rows.append({**rows[0], "provider": "Liger", "status": "refused", "reason": "gradient error 1e-2, bar 1e-3"})
    big = Case(size=4096)
    rows += [
        row(big, "eager", 8e6, peak_bytes=900 << 20, extra_bytes=800 << 20),
        row(big, "ours:cpu", 6e6, speedup=1.3, peak_bytes=80 << 20, extra_bytes=16 << 20),
    ]
    return Results(
        about=about(), ceilings={"bytes_per_s": 2e10, "flop_per_s_float32": 1e11, "flop_per_s_bfloat16": 2e11},
        absent={"Inf-CL": "not installed; pip install inf-cl==1.2.1"}, rows=rows,
        unet_steps=[
            {
                "unet": "tiny", "parameters": 5_500_000, "size": 16, "dtype": "float32", "elements": 1024,
                "provider": "ours:cpu", "status": "timed", "step": rows[0]["called"], "loss": rows[1]["called"],
                "share": {"p20": 0.001, "median": 0.00123, "p80": 0.002},
            }
        ],
    )  # fmt: skip


def test_a_results_file_comes_back_as_it_was(tmp_path: Path) -> None:
    results().save(tmp_path / "new" / "one.json")
    assert Results.load(tmp_path / "new" / "one.json") == results()
    assert case_of(results().rows[0]) == Case(size=16)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    results().save(tmp_path / "one.json")
    content = json.loads((tmp_path / "one.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps(content | {"schema": 0}))
    with pytest.raises(ValueError, match="schema 0: expected 1"):
        Results.load(tmp_path / "one.json")


def test_a_second_try_at_a_case_replaces_the_first() -> None:
    one = results()
    count = len(one.rows)
    one.add(Case(size=16), [row(Case(size=16), "ours:cpu", 1.0)])
    assert len(one.rows) == count
    assert one.done(Case(size=16), ["eager", "ours:cpu"]) and not one.done(Case(size=16), ["eager", "quack"])


def test_goals_are_read_off_the_file() -> None:
    outcomes = {(goal.case, goal.what): goal.outcome(results()) for goal in CPU_GOALS}
    assert outcomes[Case(size=16), "speed-up over eager"] == ("5.00x", "met")
    assert outcomes[Case(size=192), "speed-up over eager"] == ("", "not measured")
    half = Case(size=16, dtype="bfloat16")
    assert outcomes[half, "over the faster of eager and torch.compile"] == ("0.80x", "not met")
    assert outcomes[Case(size=4096), "extra memory over eager's"] == ("0.020", "met")


def test_cpu_goals_are_for_two_threads() -> None:
    alone = results()
    alone.about["threads"] = 1
    assert goals_for(results()) == CPU_GOALS
    assert goals_for(alone) == []


def test_gpu_goals_read_replays_and_kernels() -> None:
    case = Case(size=16, dtype="bfloat16", cache="cold", device="cuda")
    one = results()
    one.about = about("cuda", "Some GPU")
    one.rows = [row(case, "ours:cuda", 35.0, kernels=2, graph={"median_us": 9.0, "p20_us": 8.9, "p80_us": 9.1})]
    outcomes = {goal.what: goal.outcome(one) for goal in GPU_GOALS if goal.case == case}
    assert outcomes == {"graph replay": ("9.0 us", "not met"), "kernels": ("2", "met"), "called": ("35.0 us", "met")}


def test_the_page_holds_the_figures_and_the_hand_written_part_stays(tmp_path: Path) -> None:
    results().save(tmp_path / "results" / "one.json")
    older = results()
    older.about["date"] = "2025-01-01"
    older.rows[0]["called"]["median_us"] = 123456.0
    older.save(tmp_path / "results" / "zzz.json")
    page = tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    page.write_text(f"# Title\n\nBy hand.\n\n{report.BEGIN}\nold\n{report.END}\n\nMore by hand.\n")
    command = ["--results", str(tmp_path / "results"), "--page", str(page), "--images", str(page.parent / "images")]
    report.main(command)
    text = page.read_text()
    assert text.startswith("# Title\n\nBy hand.") and text.endswith("More by hand.\n")
    assert "old" not in text.split(report.BEGIN)[1].split("Every figure")[0]
    assert "| B=N=16 D=4096 float32 2 banks dot hot | speed-up over eager | >= 4.00x | 5.00x | met |" in text
    assert "| ours:cpu | 1.28 ms [1.15 ms, 1.41 ms] | 5.00x [5.00, 5.00] |" in text
    assert "| Liger | refused: gradient error 1e-2, bar 1e-3 |" in text
    assert "0.12 % [0.10, 0.20]" in text and "pip install inf-cl==1.2.1" in text
    assert "Not measured yet: no GPU" in text
    assert "123" not in text.split("### Every figure")[1].split("bar")[0]
    report.main(command)
    assert page.read_text() == text


def test_the_frechet_table(tmp_path: Path) -> None:
    assert report.frechet(tmp_path) == ""
    row = {"rows": 2048, "dimension": 400, "p20_s": 0.04, "p80_s": 0.05, "runs": 7}
    ours = row | {"provider": "ours", "median_s": 0.044, "from_ours": 0.0}
    scipy = row | {"provider": "scipy", "median_s": 0.11, "from_ours": 4.9e-14}
    one = {"device": "Some CPU (1 threads)", "versions": {"scipy": "1.17"}, "results": [ours, scipy]}
    (tmp_path / "one.json").write_text(json.dumps(one))
    found = report.frechet(tmp_path)
    assert "in turns in one process; scipy 1.17." in found
    assert "| Some CPU (1 threads) | N=2048 d=400 | ours | 0.044 s [0.04, 0.05] | 1.00x | 0.0e+00 | 7 |" in found
    assert "| scipy | 0.11 s [0.04, 0.05] | 2.50x | 4.9e-14 | 7 |" in found


def test_a_page_without_markers_is_left_alone() -> None:
    with pytest.raises(ValueError, match="lacks the markers"):
        report.replace_generated("# Title", "new")


def test_the_same_results_give_the_same_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first = plots.draw(results(), tmp_path / "first")
    second = plots.draw(results(), tmp_path / "second")
    assert {path.name for path in first.values()} == {"time.svg", "roofline.svg", "memory.svg", "error.svg"}
    for one, other in zip(first.values(), second.values(), strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size < 100_000 and "ours:cpu" in one.read_text()


def run(path: Path, *more: str) -> Results:
    command = ["--sizes", "4", "6", "--elements", "32", "--rounds", "2", "--seconds", "0.1", "--json", str(path)]
    cli.main([*command, "--providers", "eager", "ours:reference", *more])
    return Results.load(path)


def test_resuming_measures_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.measure, "ceilings", lambda *about: {"bytes_per_s": 1.0})
    path = tmp_path / "one.json"
    whole = run(path)
    assert [(row["case"]["size"], row["provider"]) for row in whole.rows] == [
        (4, "eager"), (4, "ours:reference"), (6, "eager"), (6, "ours:reference"),
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="--resume adds to it"):
        run(path)

    interrupted = dataclasses.replace(whole, rows=whole.rows[:2])
    interrupted.rows[0]["called"]["median_us"] = 42.0
    interrupted.save(path)
    resumed = run(path, "--resume")
    assert len(resumed.rows) == 4 and resumed.rows[0]["called"]["median_us"] == 42.0

    interrupted.about["commit"] = "another"
    interrupted.save(path)
    with pytest.raises(SystemExit, match="cannot be resumed: commit was 'another'"):
        run(path, "--resume")
    assert "ours:reference" in capsys.readouterr().out


def test_an_interrupt_keeps_the_cases_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.measure, "ceilings", lambda *about: {"bytes_per_s": 1.0})
    real = cli.run_case

    def interrupted(case: Case, *rest: Any) -> Any:
        if case.size == 6:
            raise KeyboardInterrupt
        return real(case, *rest)

    monkeypatch.setattr(cli, "run_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "one.json")
    assert {row["case"]["size"] for row in Results.load(tmp_path / "one.json").rows} == {4}


def test_no_case_begins_after_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(cli.measure, "ceilings", lambda *about: {"bytes_per_s": 1.0})
    assert run(tmp_path / "one.json", "--budget", "0").rows == []
    assert "not measured, out of time: B=N=6" in capsys.readouterr().out
