"""Intervals, slopes and verdicts from given numbers, and the helpers of the suite."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation.suite import measures
from contrastive_i2v.evaluation.suite.background import Background
from contrastive_i2v.evaluation.suite.jackknife import interval, leave_out
from contrastive_i2v.evaluation.suite.measured import spread
from contrastive_i2v.evaluation.suite.scored import About, Scored, difference, score_clips, score_set


def test_spread() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(10, 5) == [0, 2, 4, 6, 8]


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    data = torch.tensor([1.0, 4.0, 2.0, 9.0, 3.0, 7.0], dtype=torch.float64)
    left_out = leave_out(6, lambda kept: float(data[kept].mean()))
    assert left_out[0] == 5.0  # without the first
    found = interval(float(data.mean()), left_out)
    half = 2.571 * float(data.std()) / math.sqrt(6)  # Student's t with 5 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(found.value - half), pytest.approx(found.value + half))
    assert math.isnan(interval(1.0, leave_out(2, lambda kept: 0.0)).low)
    bounded = interval(float(data.mean()), left_out, least=4.0, most=4.5)
    assert (bounded.low, bounded.high) == (4, 4.5)


def test_jackknife_leaves_out_a_tenth() -> None:
    sizes = leave_out(25, lambda kept: float(len(kept)))
    assert sizes.tolist() == [22.0] * 5 + [23.0] * 5


ABOUT = About(name="m", title="M", group="G", better="lower", definition="")


def test_clips_without_a_value_are_left_out_and_said() -> None:
    scored = score_clips(ABOUT, torch.tensor([1.0, math.nan, 3.0]).double())
    assert scored.metric.estimate.value == 2
    assert scored.metric.samples == 2
    assert "undefined for 1 of 3 clips" in scored.metric.warning
    assert math.isnan(score_clips(ABOUT, torch.full((3,), math.nan)).metric.estimate.value)


def test_slopes() -> None:
    curves = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 2.0, 5.0, 8.0]]).double()  # frame 0 is given
    assert score_clips(ABOUT, curves[:, 1:].mean(1), curves=curves).metric.slope.value == 2  # type: ignore[union-attr]
    empty = torch.zeros(0)
    of_set = score_set(ABOUT, 1.0, empty, samples=2, sample="clip", curve=curves[0])
    assert of_set.metric.slope.value == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("better", "a", "b", "verdict"),
    [
        ("lower", [1.0, 2.0, 3.0], [2.0, 3.1, 4.2], "a"),
        ("higher", [1.0, 2.0, 3.0], [2.0, 3.1, 4.2], "b"),
        ("lower", [1.0, 5.0, 3.0], [2.0, 3.1, 4.2], "neither"),
        ("truth", [5.0, 6.0, 7.0], [2.0, 3.0, 4.5], "b"),  # the truth is 1, 2, 3
        ("none", [1.0, 2.0, 3.0], [2.0, 3.1, 4.2], ""),
    ],
)
def test_verdicts(better: Any, a: list[float], b: list[float], verdict: str) -> None:
    about = replace(ABOUT, better=better)
    truth = torch.tensor([1.0, 2.0, 3.0]).double()
    few = [score_clips(about, torch.tensor(one).double(), truth=truth) for one in (a, b)]
    x, y = (score_clips(about, torch.tensor(one * 2).double(), truth=truth.repeat(2)) for one in (a, b))
    found = difference("m", ("x", x), ("y", y))
    assert found.estimate.value == pytest.approx(sum(a) / 3 - sum(b) / 3)
    assert found.better == verdict
    assert difference("m", ("x", few[0]), ("y", few[1])).better == ""  # three clips agree by chance


def test_verdict_of_a_set_is_by_the_same_clips_left_out() -> None:
    def of(value: float, left_out: list[float]) -> Scored:
        return score_set(ABOUT, value, torch.tensor(left_out * 2).double(), samples=6, sample="clip")

    shared = of(5.0, [4.0, 5.0, 6.0]), of(6.0, [5.0, 6.0, 7.01])  # both move with the clips, their gap doesn't
    assert difference("m", ("x", shared[0]), ("y", shared[1])).better == "a"
    apart = of(5.0, [4.0, 5.0, 6.0]), of(6.0, [7.0, 6.0, 5.0])
    assert difference("m", ("x", apart[0]), ("y", apart[1])).better == "neither"


def test_equal_frames_and_pairs_go_through_a_network_once() -> None:
    seen: list[int] = []

    def brightness(*frames: Tensor) -> Tensor:
        seen.append(len(frames[0]))
        return torch.stack([one.mean(dim=(1, 2, 3)) for one in frames], dim=1)  # [N, 1 or 2]

    frames = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    video = torch.stack([frames[[0, 0, 1, 0]], frames[[1, 2, 2, 2]]])
    means = frames.mean(dim=(1, 2, 3))
    expected = torch.stack([means[[0, 0, 1, 0]], means[[1, 2, 2, 2]]])
    assert torch.equal(measures._by_frame(brightness, video)[..., 0], expected)
    pairs = measures._distinct(brightness, frames[[0, 0, 1, 0]], frames[[1, 1, 0, 2]])
    assert torch.equal(pairs, torch.stack([means[[0, 0, 1, 0]], means[[1, 1, 0, 2]]], dim=1))
    assert seen == [3, 3]  # frames 0, 1, 2; pairs (0, 1), (1, 0), (0, 2)


def test_background_gives_the_result_or_the_error() -> None:
    assert Background(divmod, 17, 5).result() == (3, 2)
    with pytest.raises(ZeroDivisionError):
        Background(divmod, 17, 0).result()
