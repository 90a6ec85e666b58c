"""What captions of generated clips say, and the entropy of what samples choose."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from contrastive_i2v.data.shapes import DIRECTIONS, ShapesConfig, sample_scene
from contrastive_i2v.evaluation.captions import (
    choice_entropy,
    expected_distinct,
    expected_entropy,
    parse_caption,
)


def test_captions_of_scenes_say_the_scene() -> None:
    config = ShapesConfig(seed=3, occlusion=0.5, background_motion=0.5)
    scenes = [sample_scene(config, split, n) for split in ("train", "test") for n in range(60)]
    for scene in scenes:
        said = parse_caption(scene.caption)
        assert said is not None
        for name in ("shape", "colour", "direction", "speed", "background", "scrolls", "occluded"):
            assert getattr(said, name) == getattr(scene, name), scene.caption
        assert not said.is_open
        assert said.is_plain == (scene.background == "a plain wall" and not scene.occluded)
    assert {scene.direction for scene in scenes} == set(DIRECTIONS)


def test_captions_that_leave_the_future_open() -> None:
    said = parse_caption("a red star moves over stripes")
    assert said is not None and said.is_open and (said.shape, said.colour) == ("star", "red")
    half = parse_caption("an orange ring moves up over moving clouds behind a pillar")
    assert half is not None and half.speed is None and not half.is_open and half.scrolls and half.occluded
    assert half == replace(half, direction="up")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red star",
        "a red cat moves over stripes",
        "a dog runs over clouds",
        "a red star moves over stripes today",
    ],
)
def test_other_captions_say_nothing(text: str) -> None:
    assert parse_caption(text) is None


def test_entropy_of_choices() -> None:
    counts = torch.tensor([[4, 0, 0, 0], [1, 1, 1, 1], [2, 2, 0, 0], [0, 0, 0, 0]])
    assert choice_entropy(counts).tolist() == pytest.approx([0, math.log(4), math.log(2), 0])
    with pytest.raises(ValueError, match="below 0"):
        choice_entropy(-counts)


@pytest.mark.parametrize(("samples", "choices"), [(1, 4), (2, 4), (3, 4), (5, 4), (4, 3)])
def test_expectations_agree_with_every_outcome(samples: int, choices: int) -> None:
    outcomes = list(itertools.product(range(choices), repeat=samples))
    counts = torch.stack([torch.bincount(torch.tensor(one), minlength=choices) for one in outcomes])
    assert expected_entropy(samples, choices) == pytest.approx(float(choice_entropy(counts).mean()), abs=1e-12)
    assert expected_distinct(samples, choices) == pytest.approx(float((counts > 0).sum(dim=1).double().mean()))


def test_refusals() -> None:
    for expected in (expected_entropy, expected_distinct):
        with pytest.raises(ValueError, match="at least 1"):
            expected(0, 4)
