"""Representation alignment against its definition in float64: value, and gradient of features and MLP."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import RepresentationAlignmentLoss

B, D, E = 3, 5, 7


def by_hand(loss: RepresentationAlignmentLoss, features: Tensor, targets: Tensor, resize: Tensor) -> Tensor:
    """`resize [h' w', h w]` weighs places."""
    first, _, second, _, third = loss.projection
    places = features.flatten(2).mT  # [B, N, D]
    for layer in (first, second):
        places = places @ layer.weight.T + layer.bias
        places = places / (1 + (-places).exp())
    places = resize @ (places @ third.weight.T + third.bias)
    cosines = []
    for mine, theirs in zip(places.flatten(0, 1), targets.flatten(2).mT.flatten(0, 1), strict=True):
        cosines.append((mine * theirs).sum() / (mine.square().sum() * theirs.square().sum()).sqrt())
    return -torch.stack(cosines).mean()


def doubled() -> Tensor:
    """`[16, 4]`: 2 x 2 places to 4 x 4, bilinear, centres aligned: 3/4 of the nearest and 1/4 of the next one."""
    line = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    return torch.from_numpy(np.kron(line, line))


@pytest.mark.parametrize("places", [2, 4])
def test_value_and_gradients_by_hand(places: int) -> None:
    torch.manual_seed(0)
    loss = RepresentationAlignmentLoss(D, E, width=6)
    features = torch.randn(B, D, 2, 2, requires_grad=True)
    targets = torch.randn(B, E, places, places)
    out = loss(features, targets)
    actual = torch.autograd.grad(out, [features, *loss.parameters()])

    double = RepresentationAlignmentLoss(D, E, width=6).double()
    double.load_state_dict({name: value.double() for name, value in loss.state_dict().items()})
    wide = features.detach().double().requires_grad_()
    resize = doubled() if places == 4 else torch.eye(4, dtype=torch.float64)
    expected = by_hand(double, wide, targets.double(), resize)
    assert float(out.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for ours, theirs in zip(actual, torch.autograd.grad(expected, [wide, *double.parameters()]), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-7)
    assert torch.autograd.gradcheck(lambda h: double(h, targets.double()), wide)


def test_fewer_targets_see_all_places() -> None:
    """Stripes whose middle two of four are positive: plain bilinear would see these alone."""
    loss = RepresentationAlignmentLoss(2, 2)
    loss.projection = torch.nn.Identity()  # type: ignore[assignment]
    stripes = torch.tensor([-10.0, 10.0, 10.0, -10.0]).repeat(2).expand(8, 8)
    features = torch.stack([stripes, torch.full((8, 8), 5.0)])[None]
    targets = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert float(loss(features, targets)) == pytest.approx(-1, abs=0.03)


def test_at_its_ends_and_in_bfloat16() -> None:
    loss = RepresentationAlignmentLoss(4, 4)
    assert [layer.out_features for layer in loss.projection[::2]] == [8, 8, 4]
    loss.projection = torch.nn.Identity()  # type: ignore[assignment]
    maps = torch.randn(2, 4, 3, 3)
    assert float(loss(maps, 5 * maps)) == pytest.approx(-1) and float(loss(maps, -maps)) == pytest.approx(1)
    low = loss(maps.bfloat16(), maps)
    assert low.dtype == torch.float32 and float(low) == pytest.approx(-1, abs=1e-4)


def test_what_isnt_a_map_is_refused() -> None:
    loss = RepresentationAlignmentLoss(4, 4)
    for features, targets in (((2, 4, 9), (2, 4, 3, 3)), ((2, 4, 3, 3), (3, 4, 3, 3)), ((2, 4, 3, 3), (2, 9, 4))):
        with pytest.raises(InputError, match=r"expected \[B, D, h, w\]"):
            loss(torch.zeros(features), torch.zeros(targets))
