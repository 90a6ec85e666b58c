"""The tiny LTX-Video of moving shapes: made, gone on with, and trained from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contrastive_i2v.data.shapes import ShapesConfig
from contrastive_i2v.models import load_system
from contrastive_i2v.models.ltx_video import LTXVideo
from contrastive_i2v.training.config import PreviewConfig, ValidationConfig
from contrastive_i2v.training.recipes import RECIPES
from contrastive_i2v.training.tiny_ltx import TinyLTXConfig, make_tiny_ltx
from contrastive_i2v.training.trainer import Trainer


@pytest.mark.slow
def test_it_is_made_once_and_trained_from(tmp_path: Path) -> None:
    clips = ShapesConfig(train_clips=6, test_clips=1, frames=45)
    folder = make_tiny_ltx(TinyLTXConfig(output=tmp_path / "base", clips=clips, steps=20))
    system = load_system(folder, device="cpu")
    assert isinstance(system, LTXVideo) and (system.size, system.fps, system.window.length) == ((64, 64), 5.0, 3)
    pixels = torch.rand(1, 9, 3, 64, 64) * 2 - 1
    raw = system.codec.encode(pixels)
    assert raw.shape == (1, 3, 64, 8, 8)
    before = (folder / "system.json").stat().st_mtime_ns
    make_tiny_ltx(TinyLTXConfig(output=tmp_path / "base", clips=clips, steps=20))
    assert (folder / "system.json").stat().st_mtime_ns == before
    recipe = RECIPES["tiny-ltx-video"]
    data = replace(recipe.data, path=tmp_path / "base" / "clips" / "train", cache_dir=tmp_path / "latents")
    run = replace(
        recipe,
        model=str(tmp_path / "base"),
        output=tmp_path / "run",
        steps=2,
        data=data,
        preview=PreviewConfig(every=0),
        validation=ValidationConfig(every=0),
    )
    assert load_system(Trainer(run).run(), device="cpu").config == system.config
