"""The wall has no hole: a system that the library has never heard of trains, resumes, previews, rolls out, is evaluated
and served, and everything it brings is in toy.py."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.utils import export_to_video
from PIL import Image
from safetensors.torch import load_file

from contrastive_i2v import ImageToVideoPipeline
from contrastive_i2v.cli import main
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.video import probe
from contrastive_i2v.errors import InputError
from contrastive_i2v.models import SYSTEMS, load_system
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.sampling import rollout
from contrastive_i2v.training.config import (
    DataConfig,
    LossConfig,
    OptimizerConfig,
    PreviewConfig,
    TrainConfig,
    save_config,
)
from contrastive_i2v.training.trainer import Trainer

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("hole_toy", HERE / "toy.py")
assert SPEC is not None and SPEC.loader is not None
toy = sys.modules["hole_toy"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(toy)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved toy with random weights."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    toy.Toy(toy.ToyConfig()).save(folder)
    return folder


def recipe(model: Path, clips: Path, output: Path) -> TrainConfig:
    """All that the toy's recipe says."""
    return TrainConfig(
        output=output,
        model=str(model),
        system=toy.ToyConfig(),
        steps=40,
        batch_size=2,
        ema_decay=0.9,
        log_every=5,
        checkpoint_every=5,
        data=DataConfig(
            path=clips / "train",
            validation_path=clips / "test",
            cache_dir=output.parent / "latents",
            resolution=16,
            frames=FramesConfig(frame_rate=25.0, offset_std=1.0, windows_per_clip=2),
        ),
        loss=LossConfig(target_weight=0.2),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        preview=PreviewConfig(every=20, clips=2, frames=6),
    )


@pytest.fixture(scope="module")
def trained(start: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    Trainer(recipe(start, clips, output)).run()
    return output


def digest(folder: Path) -> str:
    tensors = load_file(folder / "model" / "toy.safetensors")
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def test_the_toy_is_one_short_file() -> None:
    assert len((HERE / "toy.py").read_text().splitlines()) <= 100
    package = HERE.parents[1] / "contrastive_i2v"
    assert not [path for path in package.rglob("*.py") if "toy" in path.read_text().lower().split()]


def test_it_trains_and_previews(trained: Path, start: Path) -> None:
    before, after = load_file(start / "toy.safetensors"), load_file(trained / "model" / "toy.safetensors")
    assert all(not torch.equal(before[name], after[name]) for name in before), "every parameter moves, the null too"
    assert probe(trained / "previews" / "step-00000040.mp4").frames == 6
    system = load_system(trained / "model")
    assert (system.config, system.size, system.fps) == (toy.ToyConfig(), (16, 16), 25.0)
    assert system.sampler == toy.Toy(toy.ToyConfig()).sampler


@pytest.mark.fault("`kill -9` while any system trains", "resumed, it ends with the bits of an undisturbed run")
@pytest.mark.processes
def test_killed_and_resumed_it_ends_with_the_same_bits(trained: Path, start: Path, clips: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import toy\n"
        "from pathlib import Path\nfrom contrastive_i2v.training.config import TrainConfig, load_config\n"
        "from contrastive_i2v.training.trainer import Trainer\n"
        f"Trainer(load_config(TrainConfig, Path({str(tmp_path / 'run.yaml')!r}))).run()"
    )
    config = recipe(start, clips, tmp_path / "run")
    save_config(config, tmp_path / "run.yaml")
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "model" / "system.json").exists(), "killed after its end: nothing was tested"
    Trainer(replace(config, resume=True)).run()
    assert digest(tmp_path / "run") == digest(trained)


def test_it_takes_adapters(start: Path, clips: Path, tmp_path: Path) -> None:
    config = replace(recipe(start, clips, tmp_path / "run"), steps=2, preview=PreviewConfig(every=0))
    with pytest.raises(InputError, match="no layer is named to_q or to_k or to_v or to_out.0; there are tell"):
        Trainer(replace(config, lora=AdapterConfig(rank=1)))
    folder = Trainer(replace(config, lora=AdapterConfig(rank=1, targets=("tell",)))).run()
    before, after = (load_system(path, device="cpu").network.state_dict() for path in (start, folder))
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == {"tell.weight"}


def test_it_rolls_out_ten_frames(trained: Path) -> None:
    system = load_system(trained / "model")
    first = torch.rand(2, 3, 4, 4)
    text = system.encode_text(["a red ball", ""])
    video = rollout(system, first, text, frames=10, seeds=[1, 2])
    assert video.shape == (2, 10, 3, 4, 4) and video.isfinite().all()
    assert torch.equal(video[:, 0], system.codec.normalize(first))
    assert torch.equal(rollout(system, first, text, frames=6, seeds=[1, 2]), video[:, :6])
    assert not torch.equal(video[:, 4], video[:, 7]), "windows have noise of their own"


@pytest.mark.umap
def test_it_is_evaluated(trained: Path, clips: Path, tmp_path: Path) -> None:
    options = ["--method", str(trained), "--data", str(clips / "test"), "--output", str(tmp_path), "--frames", "6"]
    options += ["--frame-rate", "25", "--image", "none", "--video", "none", "--flow", "none"]
    assert main.main(["evaluate", *options]) == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "videos" / trained.name).glob("*.mp4"))) == 2


def test_the_pipeline_serves_it(trained: Path, tmp_path: Path) -> None:
    pipeline = ImageToVideoPipeline.from_pretrained(trained)
    pipeline.set_progress_bar_config(disable=True)
    image = Image.new("RGB", (40, 30), (200, 30, 30))
    made = pipeline(image=image, prompt="a red ball", num_frames=10, generator=torch.Generator().manual_seed(3))
    assert len(made.frames[0]) == 10 and made.frames[0][0].size == (16, 16)
    export_to_video(made.frames[0], str(tmp_path / "ball.mp4"), fps=5)
    again = pipeline(image=image, prompt="a red ball", num_frames=10, generator=torch.Generator().manual_seed(3))
    assert [frame.tobytes() for frame in made.frames[0]] == [frame.tobytes() for frame in again.frames[0]]


def test_the_command_line_samples_it(trained: Path, clips: Path, tmp_path: Path) -> None:
    image = str(clips / "test" / "00000.mp4")
    given = ["--model", str(trained), "--image", image, "--prompt", "a red ball", "--frames", "5"]
    assert main.main(["sample", *given, "--output", str(tmp_path), "--formats", "mp4", "latents"]) == 0
    assert load_file(tmp_path / "00000.safetensors")["latents"].shape == (5, 3, 4, 4)
    assert SYSTEMS["toy"] is toy.Toy
