"""Trackers: TensorBoard plays previews, wandb and trackio (stood in for) are told each step once, and refusals."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from runs import train_until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from contrastive_i2v.errors import InputError
from contrastive_i2v.training.config import PreviewConfig, TrainConfig, load_config, save_config
from contrastive_i2v.training.logs import read_log
from contrastive_i2v.training.trackers import check_trackers
from contrastive_i2v.training.trainer import Trainer

STAND_IN = '''
calls = []

class Run:
    def log(self, values, step):
        calls.append(("log", step, values))

    def finish(self, **how):
        calls.append(("finish", how))

def init(**options):
    if options["project"] == "refused":
        raise RuntimeError("no key")
    calls.append(("init", options))
    return Run()

class Video(str):
    """A file."""
'''


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules wandb and trackio that write down what they are told."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name in ("wandb", "trackio"):
        (folder / f"{name}.py").write_text(STAND_IN)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    yield
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


@pytest.fixture
def config(train_config: TrainConfig, clips: Path) -> TrainConfig:
    data = replace(train_config.data, validation_path=clips / "test")
    preview = PreviewConfig(every=2, clips=1, frames=3, steps=1)
    return replace(train_config, data=data, preview=preview, steps=4)


def told(module: ModuleType, what: str) -> list[tuple]:  # type: ignore[type-arg]
    return [call[1:] for call in module.calls if call[0] == what]


def test_tensorboard_plays_the_previews(config: TrainConfig) -> None:
    Trainer(config).run()
    board = EventAccumulator(str(config.output / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in board.Scalars("loss")] == [2, 4]
    shown = board.Images("preview")
    assert [event.step for event in shown] == [2, 4]
    with Image.open(io.BytesIO(shown[-1].encoded_image_string)) as gif:
        assert gif.format == "GIF" and gif.n_frames == 3 and gif.size == (shown[-1].width, shown[-1].height)


def test_wandb_and_trackio_are_told_each_step_once_and_a_resumed_run_stays_itself(
    config: TrainConfig, stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, trackers=("wandb", "trackio"), project="mine", checkpoint_every=3, steps=8)
    train_until(config, 5, monkeypatch)
    Trainer(replace(config, resume=True)).run()
    logged = [(row.pop("step"), row) for row in read_log(config.output / "log.jsonl")]
    for name in ("wandb", "trackio"):
        module = sys.modules[name]
        first, second = (options for (options,) in told(module, "init"))
        settings = first.pop("config")
        assert settings["optimizer"]["learning_rate"] == 1e-3
        assert {**settings, "resume": True} == second.pop("config")
        assert first == second and first["project"] == "mine" and first["name"].startswith("run-")
        assert first.get("dir") == (str(config.output) if name == "wandb" else None)
        figures = [(step, values) for step, values in told(module, "log") if "preview" not in values]
        assert [step for step, _ in figures] == [step for step, _ in logged] == [2, 2, 4, 4, 6, 6, 8, 8]
        assert [values["loss"] for _, values in figures[::2]] == [row["loss"] for _, row in logged[::2]]
        videos = [(step, values["preview"]) for step, values in told(module, "log") if "preview" in values]
        assert videos == [(step, str(config.output / f"previews/step-{step:08d}.mp4")) for step in (2, 4, 6, 8)]
        assert told(module, "finish") == [({"exit_code": 1} if name == "wandb" else {},), ({},)]
    assert not (config.output / "tensorboard").exists()


def test_another_start_in_the_same_folder_is_another_run(
    train_config: TrainConfig, stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(train_config, trackers=("wandb",), steps=4, checkpoint_every=100)
    train_until(config, 3, monkeypatch)
    Trainer(config).run()
    first, second = (options for (options,) in told(sys.modules["wandb"], "init"))
    assert first["id"] != second["id"]
    assert [step for step, _ in told(sys.modules["wandb"], "log")] == [2, 2, 4]


def test_a_tracker_that_is_not_there_or_does_not_start_is_refused(
    train_config: TrainConfig, stand_ins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="wandb doesn't start .no key.; log in by `wandb login`, or set WANDB_MODE"):
        Trainer(replace(train_config, trackers=("wandb",), project="refused"))
    for name in ("wandb", "trackio"):
        (tmp_path / "modules" / f"{name}.py").unlink()
        sys.modules.pop(name, None)
    (tmp_path / "modules" / "wandb").mkdir()  # as wandb leaves it in a working directory
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))  # forget what was found
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules")])
    with pytest.raises(InputError, match="trackers: wandb, trackio not installed: pip install wandb trackio"):
        check_trackers(("wandb", "trackio"))


def test_the_options(train_config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none twice"):
        replace(train_config, trackers=("wandb", "wandb"))
    with pytest.raises(InputError, match="project=mine: of wandb and trackio"):
        replace(train_config, project="mine")
    config = replace(train_config, trackers=("wandb", "tensorboard"), project="mine")
    for one in (config, replace(train_config, trackers=())):
        save_config(one, tmp_path / "config.yaml")
        assert load_config(TrainConfig, tmp_path / "config.yaml") == one
