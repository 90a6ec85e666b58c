"""`contrastive-i2v interpolate` end to end, on rollout latents and on a video, and what it refuses."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from contrastive_i2v.cli import interpolate as cli
from contrastive_i2v.cli.interpolate import frame_times, run
from contrastive_i2v.data.video import probe, read_frames, resize_frames, to_uint8, write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.sampling.interpolation import resample_trajectory


@pytest.fixture
def rollout(tmp_path: Path) -> Path:
    """Three latents, as `sample --formats latents` writes them for the random model."""
    path = tmp_path / "00000.safetensors"
    save_file({"latents": torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))}, path)
    return path


def interpolate(pipeline_folder: Path, *arguments: object) -> None:
    run(["--model", str(pipeline_folder), *map(str, arguments)])


def test_latents_become_a_video_that_shows_the_decoded_path(
    rollout: Path, pipeline_folder: Path, model: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    formats = ["--formats", "mp4", "gif", "png", "latents"]
    interpolate(pipeline_folder, "--input", rollout, "--output", out, "--method", "slerp", "--fps-out", 15, *formats)
    expected = resample_trajectory(load_file(rollout)["latents"], 7, "slerp")
    found = load_file(out / "00000.safetensors")["latents"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert torch.equal(found[::3], load_file(rollout)["latents"])
    info = probe(out / "00000.mp4")
    assert (info.frames, info.fps) == (7, 15)  # 5 a second, the rate of rollouts, times 3
    with Image.open(out / "00000.png") as strip:
        pixels = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8).view(16, 7, 16, 3)
    assert torch.equal(pixels.permute(1, 3, 0, 2), to_uint8(model.codec.decode(expected[None])[0]))
    with Image.open(out / "00000.gif") as gif:
        assert gif.n_frames == 7


def test_a_video_is_encoded_at_its_own_rate(pipeline_folder: Path, model: Any, clips: Path, tmp_path: Path) -> None:
    frames = read_frames(clips / "test" / "00000.mp4", [0, 8, 16, 24])
    video = tmp_path / "short.v2.mp4"
    write_video(video, frames, 3.125)
    interpolate(pipeline_folder, "--input", video, "--output", tmp_path / "out", "--formats", "latents", "mp4")
    found = load_file(tmp_path / "out" / "short.v2.safetensors")["latents"]
    pixels = resize_frames(read_frames(video, range(4)), 16)
    given = model.codec.normalize(model.codec.sample(model.codec.encode(pixels[None])))[0]
    torch.testing.assert_close(found, resample_trajectory(given, 13, "catmull-rom"), atol=1e-5, rtol=1e-5)
    info = probe(tmp_path / "out" / "short.v2.mp4")
    assert (info.frames, info.fps) == (13, 12.5)  # the default factor of 4


def test_progress_counts_the_decoded_frames(
    rollout: Path, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interpolate(pipeline_folder, "--input", rollout, "--output", tmp_path / "out", "--factor", 5)
    assert "decoding 00000.safetensors: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fps_in", "fps_out", "expected"),
    [
        (Fraction(5), Fraction(10), [0, 0.5, 1, 1.5, 2]),
        (Fraction(10), Fraction(5), [0, 2]),
        (Fraction(5), Fraction(8), [0, 0.625, 1.25, 1.875]),  # the next would be past the last frame
        (Fraction(30000, 1001), Fraction(30000, 1001), [0, 1, 2]),
    ],
)
def test_frame_times(fps_in: Fraction, fps_out: Fraction, expected: list[float]) -> None:
    assert frame_times(3, fps_in, fps_out) == expected


def test_an_awkward_rate_still_meets_the_given_frames() -> None:
    times = frame_times(121, Fraction(30000, 1001), 7 * Fraction(30000, 1001))
    assert times[::7] == list(range(121))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps_out": 0.0}, "fps_out: expected a number > 0, got 0"),
        ({"factor": math.nan}, "factor: expected a number > 0, got nan"),
        ({"factor": 2.0, "fps_out": 9.0}, "fps_out, factor: expected one of the two, got 9 and 2"),
        ({"formats": ("mp4", "mp4")}, "formats: expected one at least, and none twice, got mp4 mp4"),
        ({"input": ()}, "input: expected one at least, and none twice, got none"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        replace(cli.Options(input=(Path("a.mp4"),)), **changes)


@pytest.mark.parametrize("arguments", [["--fps-out", "1e9"], ["--factor", "1e300"]])
def test_a_result_that_is_too_long_is_refused_with_the_largest_that_fits(
    rollout: Path, pipeline_folder: Path, tmp_path: Path, arguments: list[str]
) -> None:
    out = ["--input", rollout, "--output", tmp_path / "out"]
    message = (
        r"00000\.safetensors: .* frames and .* GiB; expected at most 100000 frames and 8 GiB: take --fps-out (\S+)"
    )
    with pytest.raises(InputError, match=message) as raised:
        interpolate(pipeline_folder, *out, *arguments)
    found = re.search(message, str(raised.value))
    assert found and float(found[1]) == 249997.0  # floor of 99,999 frames over the 2 that follow the first, times 5
    assert len(frame_times(3, Fraction(5), Fraction(float(found[1])))) <= 100_000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rate", ["1e10", "0.005"])
def test_a_rate_that_no_file_can_say_is_refused(
    rollout: Path, pipeline_folder: Path, tmp_path: Path, rate: str
) -> None:
    out = ["--input", rollout, "--output", tmp_path / "out"]
    with pytest.raises(InputError, match=r"frames a second; expected 0.01 to 1e\+06"):
        interpolate(pipeline_folder, *out, "--fps-in", rate, "--fps-out", rate)


@pytest.mark.parametrize("option", ["--fps-in", "--fps-out", "--factor"])
def test_a_rate_that_would_be_rounded_up_is_refused(
    rollout: Path, pipeline_folder: Path, tmp_path: Path, option: str
) -> None:
    with pytest.raises(InputError, match="--fps-in, --fps-out, --factor: expected at least 1/1001, got 1e-09"):
        interpolate(pipeline_folder, "--input", rollout, "--output", tmp_path / "out", option, 1e-9)


@pytest.mark.parametrize("rate", ["1e6", "0.01"])
def test_the_ends_of_the_rates_are_written(rollout: Path, pipeline_folder: Path, tmp_path: Path, rate: str) -> None:
    out = ["--input", rollout, "--output", tmp_path / "out", "--formats", "mp4", "gif"]
    interpolate(pipeline_folder, *out, "--fps-in", rate, "--fps-out", rate)
    assert probe(tmp_path / "out" / "00000.mp4").frames == 3


def test_a_result_that_is_too_large_is_refused_before_any_work(
    rollout: Path, pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "MAX_BYTES", 8 * (3 * 16 * 16 + 8 * 4 * 8 * 8))  # 8 frames of the random model
    out = tmp_path / "out"
    fits = tmp_path / "fits.safetensors"
    save_file({"latents": torch.randn(2, 4, 8, 8)}, fits)
    with pytest.raises(InputError, match="--fps-out 17.5 or less"):
        interpolate(pipeline_folder, "--input", fits, rollout, "--output", out, "--fps-out", 20)
    assert not out.exists()
    interpolate(pipeline_folder, "--input", rollout, "--output", out, "--fps-out", 17.5, "--formats", "latents")
    assert len(load_file(out / "00000.safetensors")["latents"]) == 8


def test_wrong_inputs_are_named(rollout: Path, pipeline_folder: Path, tmp_path: Path) -> None:
    def refused(message: str, *inputs: Path, output: Path = tmp_path / "out") -> None:
        with pytest.raises(InputError, match=message):
            interpolate(pipeline_folder, "--input", *inputs, "--output", output, "--formats", "latents")

    def saved(name: str, **tensors: torch.Tensor) -> Path:
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    refused("missing.mp4: no such file", tmp_path / "missing.mp4")
    (tmp_path / "notes.txt").write_text("text")
    refused("notes.txt: expected latents .* got .txt", tmp_path / "notes.txt")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    refused("broken.mp4: can't be decoded", tmp_path / "broken.mp4")
    (tmp_path / "broken.safetensors").write_bytes(b"neither")
    refused("broken.safetensors: can't be read as safetensors", tmp_path / "broken.safetensors")
    refused("a.safetensors: holds weight; expected a tensor named", saved("a.safetensors", weight=torch.ones(2)))
    refused(r"b.safetensors: .*\[3, 5, 8, 8\].*--model", saved("b.safetensors", latents=torch.ones(3, 5, 8, 8)))
    refused("c.safetensors: holds 1 frame; expected", saved("c.safetensors", latents=torch.ones(1, 4, 8, 8)))
    refused("d.safetensors: .* NaN", saved("d.safetensors", latents=torch.full((2, 4, 8, 8), torch.nan)))
    (tmp_path / "other").mkdir()
    twin = saved("other/00000.safetensors", latents=torch.ones(2, 4, 8, 8))
    refused("would both be written as 00000", rollout, twin)
    refused("would overwrite", rollout, output=tmp_path)
    assert not (tmp_path / "out").exists()
