"""The packaged classifier on clips that it was not trained on, and how it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    ShapeScene,
    ShapesConfig,
    render_scene,
    sample_scene,
)
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.shapes_reader import MOTIONS, WEIGHTS, ShapesReader, frames_apart
from contrastive_i2v.evaluation.extractors.shapes_training import (
    ShapesReaderConfig,
    degrade,
    draw_pairs,
    train_shapes_reader,
)


@pytest.fixture(scope="module")
def reader() -> ShapesReader:
    return ShapesReader()


@pytest.fixture(scope="module")
def scenes() -> list[ShapeScene]:
    """Half of them of combinations that the training split never shows."""
    config = ShapesConfig(seed=987)
    return [sample_scene(config, split, number) for split in ("train", "test") for number in range(40)]


@pytest.fixture(scope="module")
def videos(scenes: list[ShapeScene]) -> Tensor:
    """`[80, 8, 3, 64, 64]` at 5 a second."""
    return torch.stack([render_scene(one, frames=36, size=64)[::5] for one in scenes]).float() / 127.5 - 1


def accuracy(found: dict[str, Tensor], scenes: list[ShapeScene]) -> dict[str, float]:
    labels = {
        "shape": [SHAPES.index(one.shape) for one in scenes],
        "colour": [list(COLOURS).index(one.colour) for one in scenes],
        "motion": [MOTIONS.index(one.direction) for one in scenes],
    }
    hits = {name: found[name].argmax(dim=2) == torch.tensor(labels[name])[:, None] for name in found}
    return {name: float(hit.double().mean()) for name, hit in hits.items()}


def test_reads_clips_it_has_never_seen(reader: ShapesReader, scenes: list[ShapeScene], videos: Tensor) -> None:
    found = reader(videos)
    assert {name: value.shape[1:] for name, value in found.items()} == {
        "shape": (8, 6), "colour": (8, 8), "motion": (7, 5)
    }  # fmt: skip
    for value in found.values():
        torch.testing.assert_close(value.sum(dim=2), torch.ones(value.shape[:2]))
    assert min(accuracy(found, scenes).values()) > 0.93
    plain = [n for n, one in enumerate(scenes) if one.background == BACKGROUNDS[0] and not one.occluded]
    of_plain = accuracy({name: value[plain] for name, value in found.items()}, [scenes[n] for n in plain])
    assert min(of_plain.values()) > 0.97


def test_reads_other_sizes_and_blurred_frames(reader: ShapesReader, scenes: list[ShapeScene], videos: Tensor) -> None:
    small = F.interpolate(videos.flatten(0, 1), scale_factor=0.75, mode="bilinear", antialias=True)
    for changed in (F.interpolate(videos.flatten(0, 1), scale_factor=2.0, mode="bilinear"), small):
        found = reader(changed.reshape(80, 8, *changed.shape[1:]).clamp(-1, 1))
        assert min(accuracy(found, scenes).values()) > 0.9


def test_a_still_video_doesn_t_move(reader: ShapesReader, videos: Tensor) -> None:
    found = reader(videos[:, :1].expand(-1, 4, -1, -1, -1))["motion"]
    assert float((found.argmax(dim=2) == MOTIONS.index("still")).double().mean()) > 0.95


def test_pairs_are_a_fifth_of_a_second_apart(reader: ShapesReader, videos: Tensor) -> None:
    assert [frames_apart(rate) for rate in (1.0, 5.0, 10.0, 25.0)] == [1, 1, 2, 5]
    doubled = videos[:4].repeat_interleave(2, dim=1)  # 10 a second, each frame twice
    torch.testing.assert_close(reader(doubled, 10.0)["motion"][:, ::2], reader(videos[:4])["motion"])
    assert reader(videos[:4, :5], 25.0)["motion"].shape == (4, 0, 5)


def test_refusals(reader: ShapesReader, videos: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="videos: expected"):
        reader(videos[0])
    with pytest.raises(ValueError, match="NaN"):
        reader(videos[:1] * float("nan"))
    with pytest.raises(InputError, match="not readable"):
        ShapesReader(weights=tmp_path / "none.safetensors")


def test_the_package_stays_small() -> None:
    assert WEIGHTS.stat().st_size < 1.5e6
    card = (WEIGHTS.parent / "README.md").read_text(encoding="utf-8")
    assert "train --recipe shapes-reader" in card and "| plain walls, no pillar, autoencoded |" in card


def test_pairs_and_their_labels() -> None:
    config = ShapesReaderConfig(clips=6, seed=4)
    coded: list[int] = []

    def autoencode(frames: Tensor) -> Tensor:
        coded.append(len(frames))
        return torch.zeros_like(frames)

    pairs, labels = draw_pairs(config, autoencode)
    assert coded == [8, 8]  # four pairs of every third clip
    assert pairs.shape == (24, 2, 3, 64, 64)
    assert pairs[:4].unique().tolist() == [128] and len(pairs[4:8].unique()) > 20
    scene = sample_scene(ShapesConfig(seed=4), "train", 1)
    assert labels["shape"][4:8].tolist() == [SHAPES.index(scene.shape)] * 4
    assert labels["motion"][4:8].tolist() == [MOTIONS.index(scene.direction)] * 4
    video = render_scene(scene, frames=80, size=64)
    [start] = [t for t in range(75) if torch.equal(video[t], pairs[4, 0])]
    assert torch.equal(video[start + 5], pairs[4, 1])


def test_degraded_pairs_stay_in_step() -> None:
    frames = render_scene(sample_scene(ShapesConfig(seed=4), "train", 1), frames=6, size=64)[[0, 5]]
    pairs = frames.expand(200, -1, -1, -1, -1)
    motions = torch.zeros(200, dtype=torch.long)
    found, moves = degrade(pairs, motions, torch.Generator().manual_seed(0))
    still = moves == MOTIONS.index("still")
    assert 5 <= int(still.sum()) <= 40 and motions.sum() == 0
    apart = (found[:, 1] - found[:, 0]).abs().mean(dim=(1, 2, 3))
    assert float(apart[still].max()) < 0.025 < float(apart[~still].min())  # noise of 0.02 twice: 0.0226 on average
    # rolled by as much, and blurred without loss: the mean difference is that of the frames
    torch.testing.assert_close(
        (found[:, 1] - found[:, 0]).mean(dim=(2, 3))[~still].mean(dim=0),
        (frames[1].float() - frames[0].float()).mean(dim=(1, 2)) / 127.5,
        atol=1e-3,
        rtol=0,
    )


def test_training_writes_weights_that_open_and_repeats_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrastive_i2v.evaluation.extractors.shapes_training.TEST_CLIPS", 4)
    written = []
    for name in ("a", "b"):
        config = ShapesReaderConfig(output=tmp_path / name, clips=4, steps=2, batch_size=4)
        written.append(train_shapes_reader(config, lambda frames: frames).read_bytes())
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert "2 steps of 4 pairs" in card and card.count(" % |") == 6 * 3
    assert written[0] == written[1]
    assert ShapesReader(weights=tmp_path / "a" / "model.safetensors").about.weights.startswith("model.safetensors")
    with pytest.raises(InputError, match="steps"):
        ShapesReaderConfig(steps=0)
