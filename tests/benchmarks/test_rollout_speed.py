"""The speed of rollouts at equal quality, at its smallest size, and the page that its results make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import rollout_report, rollout_speed
from benchmarks.rollout_speed import MODEL, pipeline_loop
from contrastive_i2v.evaluation.suite import Networks
from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.randomness import seeded
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout
from contrastive_i2v.system import System

SMALLEST = rollout_speed.Size(
    clips=3, validation=3, frames=3, steps=(2,), default_steps=2, timed_frames=1, batches=(1, 3), rounds=1
)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_pipeline_makes_the_rollout_s_frames(guidance: float) -> None:
    system, sampler = load_system("tiny"), Sampler(steps=2, guidance_scale=guidance, image_guidance_scale=guidance)
    own, text = torch.randn(2, 4, 16, 16, generator=seeded(0)), system.encode_text(["a red star moves up", "a ring"])
    made = pipeline_loop(system, sampler, MODEL)(own, text, 3, [3, 4])
    ours = rollout(system, own, text, frames=3, seeds=[3, 4], sampler=sampler)
    torch.testing.assert_close(made, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_run_is_taken_up_again_and_makes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[System] = []
    monkeypatch.setattr(System, "compile", lambda self: compiled.append(self) or self)
    monkeypatch.setattr(rollout_speed, "available_networks", lambda *about, **more: Networks())
    monkeypatch.setattr(rollout_speed, "QUICK", SMALLEST)
    monkeypatch.setattr(rollout_speed, "GUIDANCE", rollout_speed.GUIDANCE[:1])
    load_system("tiny", InstructPix2PixConfig(max_stride=2)).save(tmp_path / "keyed")
    command = [str(tmp_path), "--quick", "--json", str(tmp_path / "results" / "one.json")]
    command += ["--keyframes", str(tmp_path / "keyed")]
    rollout_speed.main(command)
    found = json.loads((tmp_path / "results" / "one.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert len(rows) == 15 and len(compiled) == 5 * (1 + len(SMALLEST.batches))
    errors = {name: row["quality"]["frame_mse"] for name, row in rows.items()}
    best, same = errors[rollout_speed.BEST], errors["rollout, as the pipeline's best"]
    assert same["value"] == pytest.approx(best["value"], rel=1e-3)  # the same noise, weights and steps: the same videos
    assert best["over best"] is None and same["over best"][0] == pytest.approx(0, abs=1e-6)
    assert errors["rollout, calibrated, bfloat16"] != errors[rollout_speed.CALIBRATED]
    assert all(len(row["seconds"][batch]) == 1 for row in rows.values() for batch in ("1", "3"))

    kept = (tmp_path / "times.json").read_bytes()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    rollout_speed.main(command)
    assert (tmp_path / "times.json").read_bytes() == kept
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == made
    rollout_speed.main([*command, "--rows", "keyframes, calibrated", "--json", str(tmp_path / "two.json")])
    named = [one["name"] for one in json.loads((tmp_path / "two.json").read_text())["rows"]]
    assert named == [rollout_speed.BEST, "keyframes, calibrated"]
    page = rollout_report.performance(tmp_path / "results")
    assert page.count("| rollout, calibrated, bfloat16 |") == 2 and "3 clips" in page


def row(name: str, seconds: float, gap: list[float] | None, error: float = 0.1) -> dict[str, Any]:
    return {
        "name": name, "setting": "2 steps", "timed_frames": 3, "seconds": {"1": [3 * seconds] * 3, "16": [seconds] * 3},
        "error at": {"1": error}, "quality": {
            "frame_mse": {"value": [error, error, error], "over best": gap},
            "motion_ratio": {"value": [1.0, None, None], "over best": None},
        },
    }  # fmt: skip


def test_the_goal_wants_speed_and_quality(tmp_path: Path) -> None:
    assert rollout_report.performance(tmp_path) == ""
    rows = [
        row(rollout_report.BEST, 1.0, None),
        row("fast", 0.4, [0.002, -0.001, 0.005]),
        row("rounded", 0.4, [1e-7, 1e-8, 2e-7]),
        row("worse", 0.4, [0.002, 0.001, 0.003]),
        row("slow", 0.6, [-0.1, -0.2, -0.05]),
    ]
    rows[1]["seconds"]["1"] = [1.2] * 3
    assert [one["name"] for one in rows if rollout_report.meets_goal(one, rows)] == ["fast", "rounded"]
    about = {"device": {"name": "Some CPU"}, "versions": {"torch": "2", "diffusers": "0.4"}, "commit": "", "date": ""}
    whole = {**rows[1], "timed_frames": 15, "seconds": {"1": [6.0] * 3, "16": [2.0] * 3}}  # five times the frames
    assert rollout_report.meets_goal(whole, rows)
    assert not rollout_report.meets_goal({**whole, "seconds": {"1": [6.0] * 3, "16": [2.6] * 3}}, rows)
    text = {"about": about, "rows": rows, "clips": 64, "validation": 32, "timed_frames": 3}
    (tmp_path / "one.json").write_text(json.dumps(text))
    page = rollout_report.performance(tmp_path)
    assert "**fast; rounded**" in page and "### Some CPU: 64 clips" in page
    assert "| fast | 2 steps | 2.5 [2.5, 2.5] | 2.50x [2.50, 2.50] | 120 [120, 120] | 2.50x [2.50, 2.50] |" in page
    assert "| worse | 0.1000 | 0.1000 | +0.0020 [+0.0010, +0.0030] | 1.00 |" in page
