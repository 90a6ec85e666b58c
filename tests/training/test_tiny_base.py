"""The recipe of the weights that ship, in miniature: every stage, what it leaves, and going on after a stop."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from contrastive_i2v.data.shapes import ShapesConfig
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.data.types import NoClipLeft
from contrastive_i2v.models import load_system
from contrastive_i2v.training.config import TrainConfig, load_config
from contrastive_i2v.training.pretrain import PatchComponents, fit, load_frames
from contrastive_i2v.training.tiny_base import TinyBaseConfig, train_tiny_base


def test_the_recipe_makes_a_model_with_a_card_and_skips_finished_stages(tmp_path: Path) -> None:
    config = TinyBaseConfig(
        output=tmp_path,
        clips=ShapesConfig(train_clips=4, test_clips=1, frames=50),
        vae_steps=2,
        text_steps=2,
        unet_steps=1,
        second_steps=1,
    )
    folder = train_tiny_base(config)
    model = load_system(folder)
    assert model.unet.config.in_channels == 8 and model.scheduler.config.prediction_type == "v_prediction"
    card = (folder / "README.md").read_text()
    assert "autoencoder 2 steps" in card and "4 training and 1 held-out clips" in card and "0.80 M" in card
    stored = {p: p.stat().st_mtime_ns for part in ("vae", "text_encoder") for p in (tmp_path / part).iterdir()}
    assert load_config(TrainConfig, tmp_path / "unet-2" / "config.yaml").model == str(tmp_path / "unet" / "model")
    ends = [load_system(path).network.state_dict() for path in (tmp_path / "unet-2" / "model", folder)]
    assert all(torch.equal(ends[0][name].half(), ends[1][name].half()) for name in ends[0])
    train_tiny_base(config)
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert load_system(folder).fingerprint == model.fingerprint


def test_a_stage_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    target = torch.arange(6.0).reshape(2, 3)

    def run(folder: str, stop_at: int | None = None) -> torch.nn.Linear:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2, bias=False)

        def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
            if step == stop_at:
                raise KeyboardInterrupt
            noise = torch.randn(2, 3, generator=generator)
            value = (layer.weight - target - 0.1 * noise).square().mean()
            return value, {"loss": value.item()}

        fit(layer, loss, folder=tmp_path / folder, steps=9, learning_rate=0.1, seed=0, save_every=2)
        return layer

    whole = run("whole")
    try:
        run("broken", stop_at=5)
    except KeyboardInterrupt:
        resumed = run("broken")
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.fault("clips that the tiny base learns from can't be decoded", "they are named and left out")
def test_frames_of_clips_that_can_be_read(
    clips: Path, tmp_path: Path, break_later: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = read_folder(shutil.copytree(clips / "train", tmp_path / "clips"))
    whole, kept = load_frames(found, per_clip=2, step=5, size=16)
    assert kept == found and whole.shape == (6, 2, 3, 16, 16)
    break_later(found[1].path)
    found[4].path.write_bytes(b"no video")
    frames, kept = load_frames(found, per_clip=2, step=5, size=16)
    assert kept == [found[n] for n in (0, 2, 3, 5)] and torch.equal(frames, whole[[0, 2, 3, 5]])
    said = capsys.readouterr().out
    assert "left out 2 clips" in said and f"{found[1].path}: can't" in said and f"{found[4].path}: can't" in said
    with pytest.raises(NoClipLeft, match="none of the 1 clips can be used: .*00004.mp4: can't be decoded"):
        load_frames(found[4:5], per_clip=2, step=5, size=16)


@pytest.mark.parametrize("length", [1, 2])
def test_patch_components_are_the_best_linear_code(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(2, 3 * length * 4 * 4, generator=generator)
    factors = torch.randn(100, 3, 2, 2, 2, generator=generator)  # two explain every patch of a latent frame
    patches = (factors @ mixing + 0.5).reshape(100, 3, 2, 2, length, 3, 4, 4)  # [B, f, h, w, t, c, y, x]
    videos = patches.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(100, 3 * length, 3, 8, 8)
    if length == 2:  # the first frame stands for those before it
        videos[:, 0] = videos[:, 1]
        videos = videos[:, 1:]
    code = PatchComponents(videos, channels=2, side=4, length=length)
    codes = code(videos)
    assert codes.shape == (100, 3, 2, 2, 2)
    assert 0.7 < float(codes.std()) < 1.3
    flat = codes[:, 1:].movedim(2, -1).reshape(-1, 2)
    whole = patches[:, 1:].reshape(len(flat), -1)
    design = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
    rebuilt = design @ torch.linalg.lstsq(design, whole).solution
    torch.testing.assert_close(rebuilt, whole, atol=1e-3 if length == 1 else 0.5, rtol=1e-3)
    for frames in (1, 1 + length):  # causal: latent frames of what there is so far
        torch.testing.assert_close(code(videos[:, :frames]), codes[:, : 1 + (frames - 1) // length])
