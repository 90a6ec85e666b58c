"""Cosines, CLIP scores and retrieval, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from contrastive_i2v.evaluation.alignment import clipsim, cosine, retrieval_hits


def test_cosine_forgets_lengths_and_keeps_the_angle() -> None:
    a = torch.tensor([[3.0, 4.0], [2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    b = torch.tensor([[30.0, 40.0], [0.0, 5.0], [-7.0, 0.0], [1.0, 2.0]])
    found = cosine(a, b)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([1, 0, -(0.5**0.5), 0], abs=1e-15)


def test_cosine_is_float64_inside() -> None:
    """1 - cos is h^2 / 2 = 5e-9 here, which float32 can't tell from 0."""
    assert 1 - float(cosine(torch.tensor([[1.0, 1e-4]]), torch.tensor([[1.0, 0.0]]))) == pytest.approx(5e-9, rel=1e-6)


def test_cosine_names_what_it_refuses() -> None:
    good = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"b: features hold NaN or infinity, the first at \[1\]"):
        cosine(good, torch.tensor([[1.0, 1, 1], [1, math.nan, 1]]))
    with pytest.raises(ValueError, match=r"a: expected features .* got \[0, 3\]"):
        cosine(good[:0], good)
    for other in (torch.ones(2, 4), torch.ones(3, 3)):
        with pytest.raises(ValueError, match=r"a, b: expected features in pairs"):
            cosine(good, other)


def test_clipsim_is_the_mean_over_the_frames_of_each_clip() -> None:
    frames = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [4.0, 3.0]]])
    text = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    assert clipsim(frames, text).tolist() == pytest.approx([0.5, 0.7])
    with pytest.raises(ValueError, match=r"got \[2, 2, 2\] and \[1, 2\]"):
        clipsim(frames, text[:1])


def test_retrieval_ranks_the_own_candidate_by_cosine() -> None:
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    predicted = torch.tensor([[5.0, 0.1], [0.9, 1.0], [1.0, 0.9]])  # the second is nearest to the third's
    assert retrieval_hits(predicted, candidates).tolist() == [True, False, True]
    assert retrieval_hits(predicted, candidates, k=2).tolist() == [True, True, True]
    # length says nothing: a dot product would give every row to a long candidate
    assert retrieval_hits(predicted, candidates * torch.tensor([[1.0], [100], [1]])).tolist() == [True, False, True]


def test_retrieval_leaves_out_the_own_group() -> None:
    candidates = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    predicted = torch.tensor([[1.0, 0.02], [1.0, 0.0], [0.0, 1.0]])  # of one clip, each nearer to the other's
    assert retrieval_hits(predicted, candidates).tolist() == [False, False, True]
    groups = torch.tensor([4, 4, 9])
    assert retrieval_hits(predicted, candidates, groups=groups).tolist() == [True, True, True]


def test_predictions_that_are_all_alike_find_nothing() -> None:
    alike = torch.ones(6, 4)
    assert not retrieval_hits(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), alike).any()
    assert retrieval_hits(alike, torch.eye(6)[:, :4] + 0.1).sum() <= 1


def test_retrieval_names_what_it_refuses() -> None:
    good = torch.eye(3)
    with pytest.raises(ValueError, match=r"got \[3, 3\] and \[2, 3\]"):
        retrieval_hits(good, good[:2])
    with pytest.raises(ValueError, match=r"groups: expected \[3\], got \[2\]"):
        retrieval_hits(good, good, groups=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        retrieval_hits(good, good, k=0)
    with pytest.raises(ValueError, match="candidates: expected finite"):
        retrieval_hits(good, good * math.nan)
