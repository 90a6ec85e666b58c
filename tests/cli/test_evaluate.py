"""evaluate and compare from the command line, with small fixed networks: what is written, printed, kept and refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_i2v.cli import compare, evaluate, evaluation_methods
from contrastive_i2v.cli.evaluation_methods import kind_of, split_name
from contrastive_i2v.cli.evaluation_table import format_table
from contrastive_i2v.data.video import read_frames, write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.results import (
    Difference,
    Evaluated,
    Extractor,
    Interval,
    Metric,
    Report,
    load_report,
)
from contrastive_i2v.models import load_system
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import System

FAST = ["--frames", "4", "--steps", "2", "--guidance-scale", "1", "--image-guidance-scale", "1"]


class Colours:
    about = Extractor(name="colours", dimension=3, weights="fixed", resize="none")

    def __call__(self, frames: Tensor) -> Tensor:
        return frames.mean(dim=(-2, -1)).flatten(1)[:, :3]

    def classify(self, features: Tensor) -> Tensor:
        return features.softmax(dim=1)


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr(evaluation_methods.loading, "load_image_extractor", lambda name, device: Colours())
    monkeypatch.setattr(evaluation_methods.loading, "load_video_extractor", lambda name, device: Colours())
    monkeypatch.setattr(evaluation_methods.loading, "load_flow", lambda name, device: None)
    yield
    evaluation_methods._loaded.cache_clear()
    evaluation_methods._weights.cache_clear()


def arguments(clips: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(clips / "test"), "--output", str(output), *FAST, *more]


def test_evaluate_writes_report_videos_and_table(
    pipeline_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "my-run"
    run.mkdir()
    (run / "model").symlink_to(pipeline_folder)
    (run / "config.yaml").write_text("steps: 100\n")
    command = arguments(clips, tmp_path / "out", "--method", str(run / "model"), "--seeds", "0", "1")
    evaluate.run(command)
    shown = capsys.readouterr()
    report = load_report(tmp_path / "out" / "report.json")
    assert [(m.name, m.kind, len(m.clips)) for m in report.methods] == [
        ("my-run", "checkpoint", 2),
        ("first-frame", "first-frame", 2),
    ]
    made = report.methods[0].provenance
    assert re.fullmatch(r"sha256 [0-9a-f]{64}", made["weights"])
    assert made["training config"] == "steps: 100\n"
    assert made["sampler"] == "2 steps, guidance text 1, image 1, DDIMScheduler"
    assert made["seeds"] == "0 1"
    assert report.provenance["resolution"] == "16"  # what the model was made for
    assert {"torch", "device", "data hash", "seconds"} <= set(report.provenance)
    assert report.command.startswith("contrastive-i2v evaluate --data ")
    still = {m.name: m for m in report.methods[1].metrics}
    assert still["motion_ratio"].estimate.value == 0
    truth = read_frames(clips / "test" / "00000.mp4", [0, 5, 10, 15]).double() / 127.5 - 1
    error = (truth[1:] - truth[:1]).square().mean()
    assert still["frame_mse"].per_clip[0] == pytest.approx(float(error), rel=1e-6)  # float32 pixels
    assert {p.name for p in (tmp_path / "out" / "videos" / "my-run").glob("*.mp4")} == {
        "00000.mp4",
        "00000.seed1.mp4",
        "00001.mp4",
        "00001.seed1.mp4",
    }
    assert "↓ Frame MSE" in shown.out
    assert shown.out.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert "my-run" in (tmp_path / "out" / "report.html").read_text()


def test_the_same_command_makes_nothing_twice(pipeline_folder: Path, clips: Path, tmp_path: Path) -> None:
    command = arguments(clips, tmp_path / "out", "--method", f"ours={pipeline_folder}", "--video", "none")
    evaluate.run(command)
    names = {metric.name for metric in load_report(tmp_path / "out" / "report.json").methods[0].metrics}
    assert "fid" in names
    assert "fvd" not in names
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    evaluate.run(command)
    evaluate.run([*command, "--steps", "3"])
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert {path: after[path] for path in made} == made
    frames = tmp_path / "out" / "frames" / "ours"
    assert sorted(len(list(key.glob("*.safetensors"))) for key in frames.iterdir()) == [2, 2]  # 2 steps, 3 steps


def test_videos_of_another_dtype_are_other_videos(
    pipeline_folder: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[System] = []
    monkeypatch.setattr(System, "compile", lambda self: compiled.append(self) or self)
    command = arguments(clips, tmp_path, "--method", f"ours={pipeline_folder}", "--video", "none")
    found: dict[str, list[float]] = {}
    for more in ([], ["--dtype", "bfloat16"], ["--dtype", "bfloat16", "--compile"], []):
        evaluate.run([*command, *more])
        ours = load_report(tmp_path / "report.json").methods[0]
        errors = next(metric.per_clip for metric in ours.metrics if metric.name == "frame_mse")
        made = ours.provenance.get("computed in", "")
        assert found.setdefault(made, errors) == errors
    assert list(found) == ["", "bfloat16", "bfloat16, compiled"]
    assert found[""] != found["bfloat16"] == pytest.approx(found[""], rel=0.05)
    assert len(list((tmp_path / "frames" / "ours").iterdir())) == 3
    assert [next(system.network.parameters()).dtype for system in compiled] == [torch.bfloat16]


def test_compare_says_which_is_better(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shown in (("true", [0, 5, 10, 15]), ("backwards", [15, 10, 5, 0])):
        for clip in ("00000", "00001"):
            frames = read_frames(clips / "test" / f"{clip}.mp4", shown)
            write_video(tmp_path / name / f"{clip}.mp4", frames, 5, crf=0)
    folders = [str(tmp_path / "true"), f"reverse={tmp_path / 'backwards'}", "still=first-frame"]
    compare.run(arguments(clips, tmp_path / "out", "--methods", *folders, "--image", "colours"))
    report = load_report(tmp_path / "out" / "report.json")
    assert [m.name for m in report.methods] == ["true", "reverse", "still"]
    found = {(d.metric, d.a, d.b): d for d in report.differences}
    assert len({(d.a, d.b) for d in report.differences}) == 3
    assert found["frame_mse", "true", "reverse"].estimate.value < 0
    table = capsys.readouterr().out
    assert re.search(r"↓ Frame MSE +\S+ \[\S+, \S+\]( \*)? !", table)
    assert any("latents" in text.lower() for text in report.warnings)  # no model here, so no encoder


def test_models_are_compared_at_their_own_settings_and_at_common_ones(
    pipeline_folder: Path, clips: Path, tmp_path: Path
) -> None:
    for name, scale in (("one", 1.0), ("other", 1.05)):
        system = load_system(pipeline_folder, device="cpu")
        system.sampler = Sampler(steps=2, guidance_scale=1.0, image_guidance_scale=1.0, prediction_scale=scale)
        system.save(tmp_path / name)
    before = Sampler(steps=3, guidance_scale=1.0, image_guidance_scale=1.0)
    (tmp_path / "one" / "calibration.json").write_text(json.dumps({"default": {"sampler": asdict(before)}}))
    plain = ["--data", str(clips / "test"), "--output", str(tmp_path / "out"), "--frames", "4", "--resolution", "16"]
    two = ["--methods", str(tmp_path / "one"), str(tmp_path / "other"), "first-frame"]
    compare.run([*plain, *two])
    report = load_report(tmp_path / "out" / "report.json")
    samplers = {one.name: one.provenance.get("sampler", "").rpartition(",")[0] for one in report.methods}
    own = "2 steps, guidance text 1, image 1"
    common = "3 steps, guidance text 1, image 1"
    assert samplers == {
        "one": own,
        "other": f"{own}, prediction x 1.05",
        "first-frame": "",
        "one-common": common,
        "other-common": common,
    }
    compare.run([*plain, *two, "--no-common"])
    names = [one.name for one in load_report(tmp_path / "out" / "report.json").methods]
    assert names == ["one", "other", "first-frame"]
    compare.run([*plain, *two, "--steps", "1", "--prediction-scale", "1"])
    report = load_report(tmp_path / "out" / "report.json")
    assert len(report.methods) == 3
    assert any("All models are sampled at one setting (1 steps" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "nothing"], "method 'nothing' is unknown; expected 'tiny', a folder that train wrote"),
        (["--method", "a b=tiny"], "expected NAME=SPEC with a NAME of letters"),
        (["--method", "tiny", "--resolution", "17"], "--resolution for model 'tiny': got 17x17"),
        (["--baselines", "retrieval"], "give their folder as --train-data"),
        (["--frames", "9"], "test: none of its 2 clips can be evaluated"),
        (["--method", "first-frame", "--baselines", "first-frame"], "resolution: nothing here says which"),
        (
            ["--method", "first-frame", "--resolution", "16", "--baselines", "first-frame"],
            "methods: first-frame is taken already",
        ),
        (["--lpips", "alex"], "lpips"),
    ],
)
def test_bad_input_is_one_error(clips: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate.run(arguments(clips, tmp_path / "out", *more))
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 1)}, "seeds: expected one at least, and none twice, got 1 1"),
        ({"frames": 1}, "frames: expected at least 2, got 1"),
        ({"clips": 0}, "clips: expected at least 1, got 0"),
        ({"frame_rate": 0.0}, "frame_rate: expected a number > 0, got 0.0"),
        ({"methods": ("tiny",)}, "methods: expected two or more, got tiny"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        replace(compare.Options(data=Path("clips"), methods=("a", "b")), **changes)


def test_names() -> None:
    assert split_name("runs/ours/model") == ("ours", "runs/ours/model")
    assert split_name("base=owner/model") == ("base", "owner/model")
    assert split_name("eval/videos/theirs") == ("theirs", "eval/videos/theirs")
    assert split_name("first-frame") == ("first-frame", "first-frame")


def test_kinds(pipeline_folder: Path, clips: Path, tmp_path: Path) -> None:
    assert kind_of("tiny") == kind_of(str(pipeline_folder)) == kind_of("owner/model") == "checkpoint"
    assert kind_of(str(clips / "test")) == "videos"
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline"}))
    assert kind_of(str(tmp_path)) == "pipeline"
    for damaged in ("{", "[]", "3", "[" * 100_000):
        (tmp_path / "model_index.json").write_text(damaged)
        with pytest.raises(InputError, match=r"model_index\.json: can't be read"):
            kind_of(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": ["x"]}')
    with pytest.raises(InputError, match=r"_class_name is \['x'\]; expected the name"):
        kind_of(str(tmp_path))


@pytest.mark.parametrize("folder", ["videos/mine", "videos", "videos/mine/below"])
def test_finished_videos_are_not_overwritten(clips: Path, tmp_path: Path, folder: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(clips / "test", out / "videos" / "mine" / "below")
    before = sorted(out.rglob("*"))
    with pytest.raises(InputError, match="mine=.*: its videos would be written among those it is read from"):
        evaluate.run(arguments(clips, out, "--method", f"mine={out / folder}", "--resolution", "16"))
    assert sorted(out.rglob("*")) == before


def test_a_pipeline_that_can_not_be_loaded_says_why(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "svd"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline"}))
    with pytest.raises(InputError, match=r"svd': diffusers can't load this pipeline: "):
        evaluate.run(arguments(clips, tmp_path / "out", "--method", str(folder), "--resolution", "16"))


def test_table_marks_and_lines_up() -> None:
    def method(name: str, value: float, warning: str = "") -> Evaluated:
        metric = Metric(
            name="m",
            title="M",
            group="G",
            better="lower",
            definition="",
            estimate=Interval(value=value, low=value - 1, high=value + 1),
            truth=0.25,
            warning=warning,
        )
        bare = replace(metric, name="n", title="N", better="truth", estimate=Interval(value=2.0), truth=float("nan"))
        return Evaluated(name=name, kind="videos", provenance={}, metrics=[metric, bare], clips=[])

    report = Report(
        title="",
        command="",
        created="",
        methods=[method("a", 3.0), method("b", 123456.0, "careful")],
        extractors={},
        provenance={},
        differences=[Difference(metric="m", a="a", b="b", estimate=Interval(value=-1), better="a")],
        warnings=["be careful"],
    )
    lines = format_table(report)
    assert lines[1] == "G"
    assert lines[2] == "  ↓ M  3 [2, 4] *  1.235e+05 [1.235e+05, 1.235e+05] !  0.25"
    assert lines[3].split() == ["≈", "N", "2", "2", "!"]
    assert lines[-2].endswith("* = better than the other, by the paired interval")
    assert lines[-1] == "note: be careful"

    third = replace(report, methods=[*report.methods, method("c", 9.0)])
    assert not any("*" in line for line in format_table(third))  # a isn't known to be better than c
    above = Difference(metric="m", a="c", b="a", estimate=Interval(value=6), better="b")
    lines = format_table(replace(third, differences=[*report.differences, above]))
    assert lines[2].startswith("  ↓ M  3 [2, 4] *  ") and lines[2].count("*") == 1
    assert "* = better than each other method" in lines[-2]


def test_a_model_of_the_usual_dtype_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation_methods._loaded.cache_clear()
    loaded: list[str] = []
    load = evaluation_methods.load_system
    monkeypatch.setattr(
        evaluation_methods, "load_system", lambda spec, **more: loaded.append(spec) or load(spec, **more)
    )
    assert evaluation_methods._system("tiny") is evaluation_methods._system("tiny", "float32", False)
    assert loaded == ["tiny"]
