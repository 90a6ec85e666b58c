"""The best clips by scores."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.data.video import write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.clip import CLIP
from contrastive_i2v.training.config import DataConfig
from contrastive_i2v.training.selection import mean_ranks, score, select_clips


def test_scores_against_numpy() -> None:
    pixels = torch.rand(4, 3, 9, 11, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = pixels.double().numpy()
    luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    laplacian = (
        luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:] - 4 * luma[:, 1:-1, 1:-1]
    )
    found = score(pixels, "a ball")
    assert found["motion"] == pytest.approx(np.abs(np.diff(x, axis=0)).mean(), rel=1e-5)
    assert found["sharpness"] == pytest.approx(laplacian.reshape(4, -1).var(axis=1).mean(), rel=1e-4)


def test_ranks_share_ties() -> None:
    assert mean_ranks([{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 5.0}, {"a": 2.0, "b": 9.0}]) == [0.25, 1.25, 1.5]
    assert mean_ranks([]) == []


def test_the_moving_and_sharp_clips_stay(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    flat = torch.full_like(noise, 128)
    moving = torch.cat([noise.roll(3 * i, dims=-1) for i in range(20)])
    for name, video in {
        "still": flat.expand(20, -1, -1, -1),
        "moving": moving,
        "middling": noise.expand(20, -1, -1, -1),
    }.items():
        write_video(tmp_path / f"{name}.mp4", video, fps=25)
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "broken.txt").write_text("broken")
    clips, _ = read_folder(tmp_path)
    kept = select_clips(clips, DataConfig(path=tmp_path, resolution=32, keep=1 / 3), file=tmp_path / "scores.csv")
    assert [clip.caption for clip in kept] == ["broken", "moving"]  # encoding names what can't be read
    rows = {row["caption"]: row for row in csv.DictReader((tmp_path / "scores.csv").open())}
    assert {name: row["kept"] for name, row in rows.items()} == {"still": "0", "moving": "1", "middling": "0"}


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"keep": 1.5}, {"clip": "a/b"}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        DataConfig(**options)  # type: ignore[arg-type]


def test_the_caption_s_score_is_clip_s_similarity(clip_folder: Path) -> None:
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = CLIP(str(clip_folder))
    image, text = (F.normalize(features.double(), dim=1) for features in (network(pixels), network.text(["a ball"])))
    assert score(pixels, "a ball", network)["caption"] == pytest.approx(float((image @ text.T).mean()), abs=1e-5)
