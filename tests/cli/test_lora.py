"""Adapters on the command line: train one, then sample, merge, evaluate and calibrate with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from contrastive_i2v.cli import calibrate, evaluate
from contrastive_i2v.cli.main import main
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.results import load_report
from contrastive_i2v.models import load_system, read_description
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.training.config import OptimizerConfig, TrainConfig, load_config, save_config

ONCE = ["--steps", "1", "--guidance-scale", "1", "--image-guidance-scale", "1"]


@pytest.fixture
def run(train_config: TrainConfig, tmp_path: Path) -> Path:
    """The folder of a run of LoRA, started by the command."""
    optimizer = OptimizerConfig(learning_rate=3e-2, warmup_steps=0)
    save_config(replace(train_config, steps=3, optimizer=optimizer), tmp_path / "run.yaml")
    command = ["train", "--config", str(tmp_path / "run.yaml"), "--lora.rank", "2", "--lora.targets", "to_q", "to_v"]
    assert main(command) == 0
    assert load_config(TrainConfig, train_config.output / "config.yaml").lora.targets == ("to_q", "to_v")
    return train_config.output


def sampled(output: Path, *arguments: object) -> Tensor:
    image = output.with_suffix(".png")
    Image.effect_noise((16, 16), 60).convert("RGB").save(image) if not image.exists() else None
    command = ["sample", "--image", image, "--prompt", "a red ball", "--frames", "3", *ONCE, "--formats", "latents"]
    assert main([*map(str, command), "--output", str(output), *map(str, arguments)]) == 0
    return load_file(output / "00000.safetensors")["latents"]


def test_samples_of_an_adapter_with_weights_and_merged(run: Path, pipeline_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base, alone = sampled(out, "--model", pipeline_folder), sampled(out, "--model", run)
    assert (alone - base).abs().max() > 1e-3
    named = sampled(out, "--model", pipeline_folder, "--lora", run)
    assert torch.equal(named, alone)
    halves = sampled(out, "--model", pipeline_folder, "--lora", f"{run}=0.5", f"{run / 'model'}=0.5")
    torch.testing.assert_close(halves, alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(sampled(out, "--model", pipeline_folder, "--lora", f"{run}=0"), base)

    merge = ["merge", "--model", str(pipeline_folder), "--lora", str(run), "--output", str(tmp_path / "whole")]
    assert main(merge) == 0
    assert torch.equal(sampled(out, "--model", tmp_path / "whole"), alone)
    assert (tmp_path / "whole" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_what_cannot_be_merged_is_refused(
    run: Path, pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", "--model", str(pipeline_folder), "--output", str(tmp_path / "whole")]) == 2
    assert "has no adapter to merge" in capsys.readouterr().err
    assert main(["merge", "--model", str(run), "--output", str(run / "model")]) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert main(["merge", "--model", str(run), "--lora", f"{run}=x", "--output", str(tmp_path / "whole")]) == 2
    assert "expected PATH or PATH=WEIGHT with a number, got 'x'" in capsys.readouterr().err
    assert not (tmp_path / "whole").exists()


def test_an_adapter_is_evaluated(run: Path, pipeline_folder: Path, clips: Path, tmp_path: Path) -> None:
    nothing = ["--image", "none", "--video", "none", "--flow", "none", "--latents", "none"]
    command = ["--data", str(clips / "test"), "--output", str(tmp_path / "out"), "--frames", "3", *ONCE, *nothing]
    command += ["--method", f"ours={pipeline_folder}"]
    errors: list[float] = []
    for lora in ([], [f"{run}"], [f"{run}=0.5"]):
        evaluate.run([*command, *(["--lora", *lora] if lora else [])])
        ours = load_report(tmp_path / "out" / "report.json").methods[0]
        assert ours.name == "ours" and ours.provenance["weights"].count("+") == len(lora)
        errors.append(next(metric.estimate.value for metric in ours.metrics if metric.name == "frame_mse"))
    assert len(set(errors)) == 3
    with pytest.raises(InputError, match="was trained on"):
        evaluate.run([*command[:-1], "tiny", "--lora", str(run)])


def test_a_calibrated_adapter_stays_one(
    run: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Sampler(steps=3, prediction_scale=1.25)
    found = SimpleNamespace(chosen=SimpleNamespace(sampler=chosen), to_json=lambda: "{}")
    monkeypatch.setattr(calibrate, "calibrate", lambda *a, **k: (found, []))
    monkeypatch.setattr(calibrate, "write_page", lambda *a, **k: None)
    before, data = read_description(run / "model"), calibrate.ClipsOptions(path=clips / "test", frames=3)
    calibrate.calibrate_model(
        load_system(run), run / "model", data, tmp_path, config=calibrate.CalibrationConfig(), command=""
    )
    after = read_description(run / "model")
    assert before is not None and after is not None and after.adapter == before.adapter is not None
    assert load_system(run, device="cpu").sampler == after.sampler == chosen
