"""Which timesteps training draws, against the equations in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from contrastive_i2v.diffusion import NoiseSchedule

STEPS = 1000
VP = NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
FLOW = NoiseSchedule("flow", None, STEPS)
COUNT = 20_000


def draw(schedule: NoiseSchedule, seed: int = 5, count: int = COUNT, **options: Any) -> torch.Tensor:
    return schedule.sample_timesteps(count, torch.Generator().manual_seed(seed), **options)


def oracle(distribution: str, mean: float, std: float, shift: float, seed: int = 5) -> np.ndarray:
    """u' in (0, 1), float64, of the same random numbers."""
    generator = torch.Generator().manual_seed(seed)
    if distribution == "uniform":
        share = 1 - torch.rand(COUNT, generator=generator).double().numpy()
    else:
        share = 1 / (1 + np.exp(-(mean + std * torch.randn(COUNT, generator=generator).double().numpy())))
    moved: np.ndarray = shift * share / (1 + (shift - 1) * share)
    return moved


@pytest.mark.parametrize("seed", range(4))
def test_plain_draws_are_randints_to_the_bit(seed: int) -> None:
    expected = torch.randint(STEPS, (257,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(draw(VP, seed, 257), expected)
    assert torch.equal(draw(VP, seed, 257, distribution="uniform", mean=3.0, std=9.0, shift=1.0), expected)
    after = torch.Generator().manual_seed(seed)
    VP.sample_timesteps(257, after)
    other = torch.Generator().manual_seed(seed)
    torch.randint(STEPS, (257,), generator=other)
    assert torch.equal(torch.rand(3, generator=after), torch.rand(3, generator=other))  # what is drawn next, too


@pytest.mark.parametrize(
    ("distribution", "mean", "std", "shift"),
    [
        ("uniform", 0.0, 1.0, 3.0),
        ("uniform", 0.0, 1.0, 0.5),
        ("logit-normal", 0.0, 1.0, 1.0),
        ("logit-normal", -0.6, 1.3, 1.0),
        ("logit-normal", 0.4, 0.7, 3.0),
    ],
)
def test_draws_follow_the_equations(distribution: str, mean: float, std: float, shift: float) -> None:
    options: dict[str, Any] = {"distribution": distribution, "mean": mean, "std": std, "shift": shift}
    time = oracle(**options) * STEPS
    flow = draw(FLOW, **options)
    assert flow.dtype == torch.float32 and float(flow.min()) > 0 and float(flow.max()) <= STEPS
    np.testing.assert_allclose(flow.numpy(), time, rtol=2e-6, atol=1e-3)

    integers = draw(VP, **options)
    assert integers.dtype == torch.int64 and int(integers.min()) >= 0 and int(integers.max()) < STEPS
    clear = np.abs(time - np.round(time)) > 1e-3  # elsewhere float32 may round across an integer
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(integers.numpy()[clear], np.clip(np.ceil(time) - 1, 0, STEPS - 1)[clear])
    assert np.abs(integers.numpy() - (np.ceil(time) - 1)).max() <= 1


def test_uniform_flow_is_uniform_over_all_noise_levels_but_none_at_zero() -> None:
    flow = draw(FLOW)
    np.testing.assert_allclose(flow.numpy(), oracle("uniform", 0.0, 1.0, 1.0) * STEPS, rtol=1e-6)
    counts = torch.histc(flow, 10, 0, STEPS)
    assert float((counts / COUNT - 0.1).abs().max()) < 0.01


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_settings_move_the_draws_the_right_way(schedule: NoiseSchedule) -> None:
    def mean(**options: Any) -> float:
        return float(draw(schedule, **options).double().mean()) / STEPS

    def spread(**options: Any) -> float:
        return float(draw(schedule, **options).double().std()) / STEPS

    logit: dict[str, Any] = {"distribution": "logit-normal"}
    assert abs(mean() - 0.5) < 0.01 and abs(mean(**logit) - 0.5) < 0.01
    assert mean(shift=0.3) < 0.4 < 0.6 < mean(shift=3.0) < mean(shift=9.0)  # a shift above 1 is noisier
    assert mean(**logit, shift=0.3) < 0.4 < 0.6 < mean(**logit, shift=3.0)
    assert mean(**logit, mean=-1.0) < 0.35 < 0.65 < mean(**logit, mean=1.0)
    assert spread(**logit, std=0.5) < spread(**logit) < spread() < spread(**logit, std=3.0)
    # E of a uniform draw under shift s: s (s - 1 - ln s) / (s - 1)^2
    assert abs(mean(shift=3.0) - 3 * (2 - math.log(3)) / 4) < 0.01


def test_the_ends_stay_inside() -> None:
    """A sigmoid of a large number is 1 in float32, of a small one 0: no timestep T, and none below 0."""
    for mean, end in ((60.0, STEPS - 1), (-200.0, 0)):
        options: dict[str, Any] = {"distribution": "logit-normal", "mean": mean}
        assert set(draw(VP, count=50, **options).tolist()) == {end}
