"""The generated clips do what their captions say, split by content, and are written once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive_i2v.data.shapes import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SPEEDS,
    ShapesConfig,
    make_shapes,
    render_scene,
    sample_scene,
)
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.data.video import probe
from contrastive_i2v.errors import InputError

CONFIG = ShapesConfig(train_clips=3, test_clips=2, size=32, frames=10)
PLAIN = replace(
    sample_scene(CONFIG, "train", 0), background="a plain wall", scrolls=False, occluded=False, shape="circle"
)


def centre(frame: torch.Tensor, background: torch.Tensor) -> np.ndarray:
    """Centre of what differs from the background, on the torus."""
    weight = (frame.float() - background.float()).abs().sum(0).numpy()
    angles = 2 * np.pi * np.arange(len(weight)) / len(weight)
    return np.array([np.angle((np.exp(1j * angles) * weight.sum(axis)).sum()) for axis in (0, 1)])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("speed", SPEEDS)
def test_the_shape_moves_as_the_caption_says(direction: str, speed: str) -> None:
    scene = replace(PLAIN, direction=direction, speed=speed, colour="white")
    frames = render_scene(scene, frames=41, size=64)
    background = frames[0].flatten(1).median(1).values[:, None, None]  # most of a plain wall
    start, end = centre(frames[0], background), centre(frames[40], background)
    moved = np.angle(np.exp(1j * (end - start))) * 64 / (2 * np.pi)  # pixels in 40 frames, along x and y
    expected = 40 * SPEEDS[speed] * np.array(DIRECTIONS[direction])
    wrapped = (expected + 32) % 64 - 32
    np.testing.assert_allclose(moved, wrapped, atol=1.0)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_shape_has_its_colour(colour: str) -> None:
    frame = render_scene(replace(PLAIN, colour=colour, shape="square"), frames=1, size=64)[0].float()
    distance = (frame - torch.tensor(COLOURS[colour]).float()[:, None, None]).abs().amax(0)
    assert 100 < int((distance < 2).sum()) < 500  # the square, and nothing else


def test_shapes_differ_from_each_other() -> None:
    images = torch.stack([render_scene(replace(PLAIN, shape=s), frames=1, size=64)[0].float() for s in SHAPES])
    distances = (images[:, None] - images[None]).abs().mean((2, 3, 4))
    assert float(distances[~torch.eye(len(SHAPES), dtype=torch.bool)].min()) > 0.5


def test_scrolling_and_occlusion_are_seen() -> None:
    still = replace(PLAIN, background="clouds")
    for changed in (replace(still, scrolls=True), replace(still, occluded=True)):
        assert changed.caption != still.caption
        difference = render_scene(changed, frames=20, size=64)[-1].float() - render_scene(still, frames=20, size=64)[-1]
        assert float(difference.abs().mean()) > 1


def test_splits_share_every_word_and_no_combination() -> None:
    config = ShapesConfig()
    scenes = {split: [sample_scene(config, split, i) for i in range(400)] for split in ("train", "test")}
    combinations = {split: {(s.shape, s.colour, s.direction) for s in group} for split, group in scenes.items()}
    assert not combinations["train"] & combinations["test"]
    for attribute in ("shape", "colour", "direction", "speed", "background"):
        assert len({getattr(s, attribute) for s in scenes["train"]}) == len(
            {getattr(s, attribute) for s in scenes["test"]}
        )


def test_a_folder_is_a_dataset_and_is_written_once(tmp_path: Path) -> None:
    make_shapes(tmp_path, CONFIG, progress=False)
    clips, skipped = read_folder(tmp_path / "train")
    assert len(clips) == 3 and not skipped
    assert [clip.caption for clip in clips] == [sample_scene(CONFIG, "train", i).caption for i in range(3)]
    info = probe(clips[0].path)
    assert (info.frames, info.fps, info.height, info.width) == (10, 25.0, 32, 32)
    row = json.loads((tmp_path / "test" / "metadata.jsonl").read_text().splitlines()[0])
    assert row["shape"] in SHAPES and row["text"] == sample_scene(CONFIG, "test", 0).caption

    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    missing = clips[1].path
    content = missing.read_bytes()
    missing.unlink()  # as after an interruption
    make_shapes(tmp_path, CONFIG, progress=False)
    assert missing.read_bytes() == content
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != missing)
    with pytest.raises(InputError, match="another config"):
        make_shapes(tmp_path, replace(CONFIG, seed=5), progress=False)


@pytest.mark.parametrize("name", ["occlusion", "background_motion"])
@pytest.mark.parametrize("share", [float("nan"), -0.1, 7.0])
def test_shares_are_checked(name: str, share: float) -> None:
    with pytest.raises(InputError, match=f"{name}: expected 0 to 1, got {share}"):
        replace(CONFIG, **{name: share})


def test_captions_leave_out_what_they_are_asked_to(tmp_path: Path) -> None:
    star = replace(PLAIN, colour="orange", shape="star", background="stripes", direction="up", speed="slowly")
    assert star.caption_of("full") == star.caption == "an orange star moves up slowly over stripes"
    assert star.caption_of("open") == "an orange star moves over stripes"
    hidden = replace(star, colour="red", scrolls=True, occluded=True)
    assert hidden.caption_of("open") == "a red star moves over moving stripes behind a pillar"
    videos = {}
    for captions in ("full", "open", "same"):
        make_shapes(tmp_path / captions, replace(CONFIG, captions=captions), progress=False)
        videos[captions] = [path.read_bytes() for path in sorted((tmp_path / captions).rglob("*.mp4"))]
        rows = [json.loads(line) for line in (tmp_path / captions / "train" / "metadata.jsonl").open()]
        assert all(row["direction"] in DIRECTIONS and row["speed"] in SPEEDS for row in rows)
        said = [any(word in row["text"] for word in (*DIRECTIONS, *SPEEDS)) for row in rows]
        assert said == [captions == "full"] * 3
        assert len({row["text"] for row in rows}) == (1 if captions == "same" else 3)
    assert videos["full"] == videos["open"] == videos["same"]


def test_a_folder_from_before_there_were_other_captions_goes_on(tmp_path: Path) -> None:
    make_shapes(tmp_path, CONFIG, progress=False)
    recipe = tmp_path / "shapes.json"
    fields = json.loads(recipe.read_text())
    assert fields.pop("captions") == "full"
    recipe.write_text(json.dumps(fields))
    with pytest.raises(InputError, match="another config"):
        make_shapes(tmp_path, replace(CONFIG, captions="open"), progress=False)
    make_shapes(tmp_path, CONFIG, progress=False)
    recipe.write_text("[1]")
    with pytest.raises(InputError, match="another config"):
        make_shapes(tmp_path, CONFIG, progress=False)
