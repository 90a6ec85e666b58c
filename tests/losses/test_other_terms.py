"""The terms beside the banks against their definitions in float64, value and gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import (
    ContrastiveDiffusionLoss,
    OwnSampleContrast,
    dispersive_loss,
    distance_to_other_targets,
    min_snr_weights,
)

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TYPES = ["epsilon", "v_prediction", "sample", "flow"]
SHAPE = (5, 3, 4, 3)


def schedule_of(kind: str) -> NoiseSchedule:
    return NoiseSchedule.from_config({**SD, "prediction_type": kind})


def target_by_hand(kind: str, schedule: NoiseSchedule, clean: Tensor, noise: Tensor, t: Tensor) -> np.ndarray[Any, Any]:
    x, e = clean.double().numpy(), noise.double().numpy()
    if kind == "flow":
        return e - x
    assert schedule.alphas_cumprod is not None
    abar = schedule.alphas_cumprod.numpy()[t.numpy()][:, None, None, None]
    kinds = {"epsilon": e, "sample": x, "v_prediction": np.sqrt(abar) * e - np.sqrt(1 - abar) * x}
    return kinds[kind]


def _own(schedule: NoiseSchedule, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y, noise, *errors = torch.randn(7, *SHAPE, generator=generator)
    t = schedule.sample_timesteps(SHAPE[0], generator)
    real, own = (schedule.target(latents, noise, t) for latents in (x, y))
    return {
        "timesteps": t,
        "noise": noise,
        "clean_latents": x,
        "prediction": (real + 0.5 * errors[0]).requires_grad_(),
        "reference": real + 0.6 * errors[1],
        "own_latents": y,
        "own_prediction": (own + 0.7 * errors[2]).requires_grad_(),
        "own_reference": own + 0.5 * errors[3],
    }


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_own_sample_contrast_by_hand(kind: str, weighted: bool) -> None:
    schedule = schedule_of(kind)
    batch = _own(schedule)
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0]) if weighted else None
    out = OwnSampleContrast(schedule, beta=3.0, weight=0.4)(**batch, weights=weights)
    gradients = torch.autograd.grad(out.loss, [batch["prediction"], batch["own_prediction"]])

    w = np.ones(5) if weights is None else weights.double().numpy()
    total, terms, expected = w.sum(), {}, {}
    for name, sign, latents in (("", 1.0, "clean_latents"), ("own_", -1.0, "own_latents")):
        target = target_by_hand(kind, schedule, batch[latents], batch["noise"], batch["timesteps"])
        prediction = batch[f"{name}prediction"].detach().double().numpy()
        frozen = batch[f"{name}reference"].double().numpy()
        e, ref = (((some - target) ** 2).reshape(5, -1).mean(1) for some in (prediction, frozen))
        ratio = sign * 3.0 * (ref - e)
        terms[name] = (w * np.log1p(np.exp(-ratio))).sum() / total
        slope = sign * 3.0 * w / total / (1 + np.exp(ratio))  # d loss / d e, as -log sigmoid(r) has slope -1/(1+e^r)
        expected[name] = 0.4 * slope[:, None, None, None] * 2 * (prediction - target) / target[0].size
    assert float(out.loss.detach()) == pytest.approx(0.4 * (terms[""] + terms["own_"]), rel=1e-5)
    assert out.own is not None
    assert (float(out.real), float(out.own)) == pytest.approx((terms[""], terms["own_"]), rel=1e-5)
    for gradient, by_hand in zip(gradients, expected.values(), strict=True):
        torch.testing.assert_close(gradient.double(), torch.from_numpy(by_hand), rtol=1e-4, atol=1e-7)


def test_own_sample_contrast_pushes_from_own_samples_and_positive_only_does_not() -> None:
    schedule = schedule_of("v_prediction")
    batch = _own(schedule)
    both = OwnSampleContrast(schedule)(**batch)
    own_target = schedule.target(batch["own_latents"], batch["noise"], batch["timesteps"])
    error = batch["own_prediction"].detach() - own_target
    (away,) = torch.autograd.grad(both.loss, batch["own_prediction"], retain_graph=True)
    assert bool(((away * error).flatten(1).sum(1) < 0).all())  # descending the loss raises the error on own samples
    positive = OwnSampleContrast(schedule, positive_only=True)
    real = {name: value for name, value in batch.items() if not name.startswith("own")}
    half = positive(**real)
    assert half.own is None and float(half.loss.detach()) == pytest.approx(0.3 * float(both.real), rel=1e-6)
    ours, theirs = (torch.autograd.grad(one.loss, batch["prediction"])[0] for one in (half, both))
    assert torch.equal(ours, theirs)
    none = positive(**real, weights=torch.zeros(5))
    assert float(none.loss) == 0


def test_own_sample_contrast_refuses_what_does_not_fit() -> None:
    schedule = schedule_of("epsilon")
    batch = _own(schedule)
    with pytest.raises(InputError, match="expected none of them with positive_only=True"):
        OwnSampleContrast(schedule, positive_only=True)(**batch)
    with pytest.raises(InputError, match="expected all of them"):
        OwnSampleContrast(schedule)(**{**batch, "own_reference": None})
    for options in ({"beta": 0.0}, {"weight": math.inf}):
        with pytest.raises(InputError, match="expected a number > 0"):
            OwnSampleContrast(schedule, **options)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_flow_contrast_by_hand(kind: str, gamma: float | None) -> None:
    """Rows 0 and 1 are of one video, so row 0 is held against row 2."""
    schedule = schedule_of(kind)
    generator = torch.Generator().manual_seed(1)
    clean, noise, error = torch.randn(3, *SHAPE, generator=generator)
    t = schedule.sample_timesteps(5, generator)
    prediction = (schedule.target(clean, noise, t) + 0.3 * error).requires_grad_()
    loss = ContrastiveDiffusionLoss(schedule, banks={}, flow_contrast_weight=0.05, min_snr_gamma=gamma)
    noisy, groups = schedule.add_noise(clean, noise, t), torch.tensor([7, 7, 2, 3, 3])
    out = loss(prediction, noisy, t, clean, noise, {}, groups=groups)
    (gradient,) = torch.autograd.grad(out.loss, prediction)

    target, others = target_by_hand(kind, schedule, clean, noise, t), [2, 2, 3, 0, 0]
    f = prediction.detach().double().numpy()
    w = np.ones(5) if gamma is None else min_snr_weights(schedule, t, gamma).double().numpy()
    mean = lambda some: (w * (some**2).reshape(5, -1).mean(1)).mean()  # noqa: E731
    mse, distance = mean(f - target), mean(f - target[others])
    assert out.flow_contrast is not None
    assert float(out.flow_contrast) == pytest.approx(distance, rel=1e-5)
    assert float(out.loss.detach()) == pytest.approx(mse - 0.05 * distance, rel=1e-5)
    by_hand = 2 * ((f - target) - 0.05 * (f - target[others])) * w[:, None, None, None] / f.size
    torch.testing.assert_close(gradient.double(), torch.from_numpy(by_hand), rtol=1e-4, atol=1e-7)


def test_flow_contrast_rescales_the_optimum() -> None:
    """With unrelated targets of mean 0: by 1 / (1 - lambda)."""
    targets = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (scale * targets - targets).square().mean() - 0.2 * distance_to_other_targets(scale * targets, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    assert float(scale.detach()) == pytest.approx(1 / (1 - 0.2), abs=0.02)


def test_rows_without_another_video_have_no_flow_contrast() -> None:
    prediction, target = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert float(distance_to_other_targets(prediction, target, groups=torch.zeros(3, dtype=torch.int64))) == 0
    assert float(distance_to_other_targets(prediction[:1], target[:1])) == 0
    alone = distance_to_other_targets(prediction, target, groups=torch.tensor([1, 1, 5]))
    by_hand = torch.stack([(prediction[i] - target[j]).square().mean() for i, j in ((0, 2), (1, 2), (2, 0))]).mean()
    torch.testing.assert_close(alone, by_hand)
    with pytest.raises(InputError, match="flow_contrast_weight=1"):
        ContrastiveDiffusionLoss(SD, flow_contrast_weight=1.0)


@pytest.mark.parametrize("grouped", [False, True])
def test_dispersive_loss_by_hand(grouped: bool) -> None:
    features = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    groups = torch.tensor([1, 1, 2, 3, 2]) if grouped else None
    loss = dispersive_loss(features, 0.7, groups=groups)
    (gradient,) = torch.autograd.grad(loss, features)

    h = features.detach().double().numpy().reshape(5, 6)
    marks = np.arange(5) if groups is None else groups.numpy()
    pairs = [(i, j) for i in range(5) for j in range(5) if i == j or marks[i] != marks[j]]
    terms = {(i, j): math.exp(-((h[i] - h[j]) ** 2).mean() / 0.7) for i, j in pairs}
    assert float(loss.detach()) == pytest.approx(math.log(sum(terms.values()) / len(pairs)), rel=1e-5)
    by_hand = np.zeros_like(h)
    for (i, j), term in terms.items():
        by_hand[i] += 2 * term / sum(terms.values()) * -2 * (h[i] - h[j]) / 6 / 0.7  # (i, j) and (j, i)
    torch.testing.assert_close(gradient.double().flatten(1), torch.from_numpy(by_hand), rtol=1e-4, atol=1e-7)


def test_dispersive_loss_at_its_ends() -> None:
    assert float(dispersive_loss(torch.ones(6, 4))) == pytest.approx(0, abs=1e-6)
    assert float(dispersive_loss(1e3 * torch.eye(6))) == pytest.approx(-math.log(6))
    with pytest.raises(InputError, match="temperature=0"):
        dispersive_loss(torch.ones(2, 2), 0.0)
