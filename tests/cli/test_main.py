"""The command line: help a newcomer understands, one line for bad input, and sampling end to end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from contrastive_i2v.cli.main import COMMANDS, main
from contrastive_i2v.data.video import probe
from contrastive_i2v.pipeline import ImageToVideoPipeline
from contrastive_i2v.system import System


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str], *, status: int = 2) -> str:
    """The single line a command prints for bad input, or for what `status` says."""
    assert main(arguments) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main([command, "--help"])
    assert exit_status.value.code == 0
    assert f"contrastive-i2v {command}" in capsys.readouterr().out


def test_unknown_command_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no command 'trian'; expected one of demo, train" in error_of(["trian"], capsys)
    assert "no such recipe; expected one of contrastive" in error_of(["train", "--recipe", "best"], capsys)
    assert "nothere.yaml" in error_of(["train", "--config", "nothere.yaml"], capsys)


def test_info_says_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text and "backend reference" in text and "backend cpu" in text


def test_bad_data_is_one_line_that_names_it(
    tmp_path: Path, pipeline_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "--model", str(pipeline_folder), "--output", str(tmp_path / "run"), "--data.resolution", "16"]
    assert "nowhere" in error_of([*run, "--data.path", str(tmp_path / "nowhere")], capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in error_of([*run, "--data.path", str(empty)], capsys)
    (empty / "clip.mp4").write_bytes(b"not a video")
    assert "clip.mp4" in error_of([*run, "--data.path", str(empty)], capsys)  # no caption
    (empty / "clip.txt").write_text("a clip")
    cache = ["--data.cache-dir", str(tmp_path / "cache")]
    assert "clip.mp4" in error_of([*run, *cache, "--data.path", str(empty)], capsys)  # corrupt


def test_a_training_that_diverges_is_one_line_with_a_status_of_its_own(
    tmp_path: Path, pipeline_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "--model", str(pipeline_folder), "--output", str(tmp_path / "run"), "--data.resolution", "16"]
    run += ["--data.path", str(clips / "train"), "--data.cache-dir", str(tmp_path / "cache"), "--steps", "9"]
    run += ["--optimizer.learning-rate", "1e30", "--optimizer.warmup-steps", "0", "--max-nonfinite-steps", "2"]
    run += ["--batch-size", "2"]
    line = error_of(run, capsys, status=3)
    assert "2 steps in a row" in line and "--optimizer.learning-rate" in line


def test_an_earlier_versions_config_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "config.yaml"
    old.write_text("steps: 3\ndata:\n  path: clips\n  pairs:\n    frame_rate: 5.0\n    pairs_per_clip: 2\n")
    line = error_of(["train", "--config", str(old)], capsys)
    assert str(old) in line and "pairs" in line and "another version" in line


def test_sample_writes_every_format(tmp_path: Path, pipeline_folder: Path, clips: Path) -> None:
    image = tmp_path / "first.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(image)
    video = next((clips / "test").glob("*.mp4"))
    arguments = ["sample", "--model", str(pipeline_folder), "--image", str(image), str(video)]
    arguments += ["--prompt", "a red ball rolls", "--frames", "3", "--steps", "2", "--output", str(tmp_path / "out")]
    arguments += ["--formats", "mp4", "gif", "png", "latents", "--scheduler", "euler", "--batch-size", "1"]
    assert main(arguments) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        *(f"0000{i}.{kind}" for i in (0, 1) for kind in ("gif", "mp4", "png", "safetensors")),
    ]
    assert probe(out / "00001.mp4").frames == 3
    with Image.open(out / "00000.gif") as gif:
        assert gif.n_frames == 3
    with Image.open(out / "00000.png") as strip:
        assert strip.size == (3 * 16, 16)
    alone = load_file(out / "00001.safetensors")["latents"]
    assert main([*arguments[:-2], "--batch-size", "2"]) == 0  # the same alone as in a batch
    torch.testing.assert_close(load_file(out / "00001.safetensors")["latents"], alone, atol=1e-4, rtol=1e-4)


def test_sample_compiles_where_asked_to(tmp_path: Path, pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, compiled = tmp_path / "first.png", []
    Image.new("RGB", (16, 16), (200, 30, 30)).save(image)
    monkeypatch.setattr(System, "compile", lambda self: compiled.append(self) or self)
    command = ["sample", "--model", str(pipeline_folder), "--image", str(image), "--prompt", "x", "--frames", "2"]
    command += ["--steps", "1", "--formats", "latents", "--output", str(tmp_path)]
    for options, count in (("--no-compile", 0), ("--compile", 1)):
        assert main([*command, options]) == 0 and len(compiled) == count


def test_sample_takes_less_memory_where_asked_to(
    tmp_path: Path, pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "first.png"
    Image.new("RGB", (16, 16), (200, 30, 30)).save(image)
    command = ["sample", "--model", str(pipeline_folder), "--image", str(image), "--prompt", "x", "--frames", "2"]
    command += ["--steps", "1", "--formats", "latents", "--output", str(tmp_path)]
    made = {}
    for options in ("--quantize no", "--quantize int8", "--dtype bfloat16 --vae-dtype float32"):
        assert main([*command, *options.split()]) == 0
        made[options] = load_file(tmp_path / "00000.safetensors")["latents"]
    whole, rounded, half = made.values()
    assert 0 < (rounded[1] - whole[1]).abs().max() < 0.1
    assert torch.equal(half[0], whole[0]) and not torch.equal(half[1], whole[1])  # the image is the autoencoder's

    if not torch.cuda.is_available():
        assert "--offload block: keeps weights from a GPU, and there is none here" in error_of(
            [*command, "--offload", "block"], capsys
        )
    monkeypatch.setattr("contrastive_i2v.cli.sample.default_device", lambda: torch.device("cuda"))
    called: list[Any] = []
    monkeypatch.setattr(ImageToVideoPipeline, "enable_model_cpu_offload", lambda self: called.append("model"))
    monkeypatch.setattr(ImageToVideoPipeline, "enable_group_offload", lambda self, **options: called.append(options))
    for options in ("--offload model", "--offload block", "--offload leaf --offload-stream"):
        assert main([*command, *options.split()]) == 0
    expected = [{"level": "block", "use_stream": False}, {"level": "leaf", "use_stream": True}]
    assert called == ["model", *expected]


def test_sample_refuses_what_it_cannot_use(
    tmp_path: Path, pipeline_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "first.png"
    run = ["sample", "--model", str(pipeline_folder), "--image", str(image), "--prompt", "x", "--output", str(tmp_path)]
    assert f"{image}: no such file" in error_of(run, capsys)
    image.write_bytes(b"text")
    assert "not a readable image" in error_of(run, capsys)
    Image.new("RGB", (8, 8)).save(image)
    assert "--resolution: got 15x15" in error_of([*run, "--resolution", "15"], capsys)
    assert "expected 1 or 3 values, got 2" in error_of(
        [*run[:3], "--image", *[str(image)] * 2, "--prompt", *"xyz"], capsys
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "-1"], "batch_size: expected at least 1, got -1"),
        (["--formats"], "formats: expected one at least, and none twice, got none"),
        (["--fps", "0"], "fps: expected 0.01 to 1e+06 frames a second, which files can say, got 0.0"),
        (["--fps", "1e9"], "fps: expected 0.01 to 1e+06 frames a second, which files can say, got 1000000000.0"),
        (["--offload-stream"], "offload_stream: is of --offload block or leaf"),
        (["--offload", "leaf", "--compile"], "offload=leaf: compiled code brings no weights"),
    ],
)
def test_sample_checks_its_counts_before_any_work(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "--image", "a.png", "--prompt", "x", *options])
    assert stopped.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_encode_names_all_it_left_out_in_a_file(
    tmp_path: Path, pipeline_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = shutil.copytree(clips / "train", tmp_path / "videos")
    for n in range(12):
        (videos / f"bad{n:02}.mp4").write_bytes(b"no video")
        if n:
            (videos / f"bad{n:02}.txt").write_text("a caption")
    data = ["--data.path", str(videos), "--data.cache-dir", str(tmp_path / "cache"), "--data.resolution", "16"]
    assert main(["encode", "--model", str(pipeline_folder), *data]) == 0
    said = capsys.readouterr().out
    assert "left out 12 clips:" in said and f"all of them: {tmp_path / 'cache' / 'skipped.csv'}" in said
    lines = (tmp_path / "cache" / "skipped.csv").read_text().splitlines()
    assert len(lines) == 13 and "bad00.mp4,no caption" in lines[1] and "bad11.mp4" in lines[12]


def test_encode_fills_the_cache_that_training_reads(
    tmp_path: Path, pipeline_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.path", str(clips / "train"), "--data.cache-dir", str(tmp_path), "--data.resolution", "16"]
    assert main(["encode", "--model", str(pipeline_folder), *data]) == 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 6
    train = ["train", "--model", str(pipeline_folder), *data, "--steps", "1", "--output", str(tmp_path / "run")]
    assert main([*train, "--batch-size", "2"]) == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("16px*/*.safetensors")} == files


def test_the_shapes_reader_is_trained_by_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("contrastive_i2v.evaluation.extractors.shapes_training.TEST_CLIPS", 2)
    run = ["train", "--recipe", "shapes-reader", "--clips", "3", "--steps", "1", "--batch-size", "2"]
    assert main([*run, "--output", str(tmp_path)]) == 0
    assert str(tmp_path / "model.safetensors") in capsys.readouterr().out
    assert load_file(tmp_path / "model.safetensors")["motion.6.weight"].shape == (5, 192)
