"""The text-frame loss against its definition in float64: value, gradient of prediction and projection, and groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import TextFrameLoss
from contrastive_i2v.losses.text_frames import joint_groups

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LATENT = (3, 2, 2)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("count", [1, 3])
def test_value_and_gradients_by_hand(kind: str, count: int) -> None:
    """Captions 0 and 3 are equal, 1 and 2 of one video, 4 was dropped; `count` latents a caption."""
    schedule = NoiseSchedule.from_config({**SD, "prediction_type": kind})
    torch.manual_seed(0)
    loss = TextFrameLoss(schedule, 6, LATENT, weight=0.4, temperature=0.2)
    features = torch.randn(5, 6)
    features[3] = features[0]
    prediction, noisy = torch.randn(2, 5 * count, *LATENT)
    prediction.requires_grad_()
    t = schedule.sample_timesteps(5 * count)
    groups, has_text = torch.tensor([4, 7, 7, 9, 2]), torch.tensor([True, True, True, True, False])
    out = loss(prediction, noisy, t, features, groups, has_text)
    actual = torch.autograd.grad(out.loss, [prediction, *loss.parameters()])

    double = TextFrameLoss(schedule, 6, LATENT).double()
    double.load_state_dict({name: value.double() for name, value in loss.state_dict().items()})
    wide = prediction.detach().double().requires_grad_()
    c_skip, c_out = (c.double()[:, None] for c in schedule.coefficients(t))
    x0 = F.normalize(c_skip * noisy.double().flatten(1) + c_out * wide.flatten(1), dim=1)
    logits = x0 @ F.normalize(double.projection(features.double()), dim=1).T / 0.2
    same = {0: (0, 3), 3: (0, 3), 1: (1, 2), 2: (1, 2)}
    terms: list[Tensor] = []
    for row in range(5 * count):
        caption = row // count
        if caption == 4:
            continue
        rivals = [j for j in range(5) if j == caption or j not in same[caption]]
        terms.append(schedule.signal(t)[row].double() * (logits[row, rivals].logsumexp(0) - logits[row, caption]))
    expected = 0.4 * torch.stack(terms).sum() / (5 * count)
    assert float(out.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(out.contrastive) == pytest.approx(float(expected.detach()) / 0.4, rel=1e-5)
    by_hand = torch.autograd.grad(expected, [wide, *double.parameters()])
    for ours, theirs in zip(actual, by_hand, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=1e-7)


def test_captions_are_joined_through_each_other() -> None:
    """0 and 1 share a video, 1 and 2 a caption, 2 and 3 a video; 4 is alone."""
    features = torch.tensor([[0.0], [1.0], [1.0], [2.0], [3.0]])
    assert joint_groups(torch.tensor([5, 5, 6, 6, 8]), features).tolist() == [0, 0, 0, 0, 4]
    chain = torch.arange(33) // 2
    assert joint_groups(chain, (torch.arange(33)[:, None] + 1) // 2).tolist() == [0] * 33


def test_without_captions_there_is_no_term() -> None:
    loss = TextFrameLoss(SD, 6, LATENT)
    prediction = torch.randn(2, *LATENT, requires_grad=True)
    t = torch.tensor([10, 500])
    out = loss(
        prediction, torch.randn(2, *LATENT), t, torch.randn(2, 6), torch.arange(2), torch.zeros(2, dtype=torch.bool)
    )
    gradients = torch.autograd.grad(out.loss, [prediction, *loss.parameters()])
    assert float(out.loss.detach()) == 0 and all(float(part.abs().max()) == 0 for part in gradients)
    for options in ({"weight": 0.0}, {"temperature": math.nan}):
        with pytest.raises(InputError, match="expected a number > 0"):
            TextFrameLoss(SD, 6, LATENT, **options)
