"""Windows, and how a model is sampled: as its system.json says, unless somebody says otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.calibration import CALIBRATION
from contrastive_i2v.models import load_system
from contrastive_i2v.models.loading import TINY
from contrastive_i2v.sampler import Sampler, SamplerOptions
from contrastive_i2v.system import System, Window


@pytest.mark.parametrize(("length", "given"), [(2, (0, 1)), (3, (1, 0)), (3, (0, 0)), (3, (3,)), (3, (-1,)), (0, ())])
def test_windows_refuse(length: int, given: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"window: .* expected rising positions"):
        Window(length, given)


def test_windows_say_what_is_given_and_whether_they_roll() -> None:
    between = Window(9, given=(0, 4, 8))
    assert between.generated == (1, 2, 3, 5, 6, 7) and between.past == 1 and not between.rolls
    assert Window(3, given=range(2)).past == 2 and Window(3, given=range(2)).rolls
    assert Window(16).generated == tuple(range(1, 16)) and Window(16).rolls
    assert not Window(3, given=()).rolls and not Window(5, given=(2,)).rolls


def test_tiny_is_sampled_as_calibrated_without_guidance_and_stable_diffusion_with(pipeline_folder: Path) -> None:
    tiny, sd = load_system("tiny", device="cpu"), load_system(pipeline_folder, device="cpu")
    found = json.loads((TINY / CALIBRATION).read_text())["chosen"]["sampler"]
    calibrated = Sampler(**found | {"guidance_interval": tuple(found["guidance_interval"])})
    assert SamplerOptions().over(tiny.sampler) == calibrated
    assert (calibrated.guidance_scale, calibrated.image_guidance_scale) == (1.0, 1.0)
    assert calibrated.prediction_scale > 1
    assert SamplerOptions().over(sd.sampler) == Sampler(steps=20, guidance_scale=7.5, image_guidance_scale=1.5)
    chosen = SamplerOptions(steps=3, guidance_scale=0.0, image_guidance_scale=2.0)
    assert chosen.over(tiny.sampler) == replace(calibrated, steps=3, guidance_scale=0.0, image_guidance_scale=2.0)
    one = SamplerOptions(guidance_scale=0.0).over(tiny.sampler)
    assert one == replace(calibrated, guidance_scale=0.0)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match="steps: expected at least 1, got 0"):
        SamplerOptions(steps=0)


@pytest.mark.parametrize("kind", [Sampler, SamplerOptions])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prediction_scale": 0.0}, "prediction_scale: expected a number > 0, got 0.0"),
        ({"prediction_scale": float("nan")}, "prediction_scale: expected a number > 0, got nan"),
        ({"prediction_slope": 2.0}, "prediction_slope: expected less than twice the prediction_scale"),
        ({"guidance_interval": (0.6, 0.4)}, "guidance_interval: expected two rising shares"),
        ({"guidance_interval": (0.0, 1.5)}, "guidance_interval: expected two rising shares"),
        ({"history_level": -0.1}, "history_level: expected at least 0, got -0.1"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number, got nan"),
        ({"image_guidance_scale": float("inf")}, "image_guidance_scale: expected a finite number, got inf"),
        ({"history_level": 1.0}, "history_level: expected below 1, which is no history, got 1.0"),
    ],
)
def test_what_no_sampler_can_have_is_refused(kind: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        kind(**values)


def test_a_sampler_says_what_it_is() -> None:
    assert str(Sampler()) == "20 steps, guidance text 7.5, image 1.5"
    assert str(Sampler(steps=4, prediction_scale=1.06, prediction_slope=0.02, guidance_interval=(0.1, 0.8))) == (
        "4 steps, guidance text 7.5, image 1.5 at 0.1 to 0.8, prediction x 1.06 +0.02 (t/T - 1/2)"
    )
    assert str(Sampler(history_level=0.3)) == "20 steps, guidance text 7.5, image 1.5, history noised to 0.3"


@pytest.fixture
def system(pipeline_folder: Path) -> System:
    """The random model, sampled, sized and timed as no other."""
    system = load_system(pipeline_folder, device="cpu")
    system.sampler = Sampler(
        steps=5,
        guidance_scale=3.0,
        image_guidance_scale=1.25,
        guidance_interval=(0.2, 0.8),
        prediction_scale=1.06,
        prediction_slope=-0.02,
    )
    system.size, system.fps = (16, 24), 7.5
    return system


def test_a_saved_model_says_how_it_is_sampled(system: System, tmp_path: Path) -> None:
    system.save(tmp_path / "saved")
    again = load_system(tmp_path / "saved", device="cpu")
    assert again.sampler == system.sampler and again.size == (16, 24) and again.fps == 7.5
    assert again.config == system.config and again.window == system.window
    said = json.loads((tmp_path / "saved" / "system.json").read_text())
    assert said["sampler"] == {
        "steps": 5,
        "keyframe_stride": 1,
        "guidance_scale": 3.0,
        "image_guidance_scale": 1.25,
        "guidance_interval": [0.2, 0.8],
        "history_level": 0.0,
        "prediction_scale": 1.06,
        "prediction_slope": -0.02,
    }
    assert said["size"] == [16, 24] and said["fps"] == 7.5 and said["system"]["kind"] == "instruct-pix2pix"


@pytest.mark.fault(
    "the disk is full while a model is written",
    "one line; the folder is as it was, a user's own files too",
)
def test_a_save_that_fails_leaves_the_folder_as_it_was(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.save(tmp_path)

    def full(folder: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(system, "save_weights", full)
    (tmp_path / "mine.txt").write_text("a user's own")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="the model could not be written .No space left"):
        system.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*.part"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"system\.json: can't be read"),
        ("[]", r"system\.json: can't be read \(a list is no object\); expected what save\(\) of a system writes"),
        ('{"sampler": {"steps": 3}}', r"system\.json: can't be read"),
        ('{"system": {"kind": "none such"}}', "system kind 'none such' is unknown; expected one of instruct-pix2pix"),
        ('{"system": {"kind": "instruct-pix2pix", "past": 2}}', "system: .*past"),
    ],
)
def test_a_damaged_description_is_named(pipeline_folder: Path, tmp_path: Path, content: str, message: str) -> None:
    for part in pipeline_folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    load_system(tmp_path, device="cpu")
    (tmp_path / "system.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_system(tmp_path, device="cpu")
