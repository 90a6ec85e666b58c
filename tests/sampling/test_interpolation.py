"""Paths between latents: exact at the latents, against curves known in closed form, smooth where they should be."""

from __future__ import annotations

import math
import re
from typing import get_args

import pytest
import torch
from scipy.interpolate import CubicHermiteSpline

from contrastive_i2v.sampling.interpolation import Path, even_times, resample_trajectory

METHODS = get_args(Path)


def latents(frames: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(frames, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)


def curve(*points: list[float]) -> torch.Tensor:
    return torch.tensor(points, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("factor", [1, 3, 7])
def test_passes_exactly_through_the_given_latents(method: Path, dtype: torch.dtype, factor: int) -> None:
    given = latents(6, dtype)
    path = resample_trajectory(given, 5 * factor + 1, method)
    assert path.dtype == dtype
    assert torch.equal(path[::factor], given)
    if factor > 1:
        assert not torch.isin(path[1:factor], given).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_number_of_frames_is_that_many_even_times(method: Path) -> None:
    given = latents(4)
    at = [0.0, 0.75, 1.5, 2.25, 3.0]
    assert torch.equal(resample_trajectory(given, 5, method), resample_trajectory(given, at, method))
    backwards = resample_trajectory(given, at[::-1], method)
    assert torch.equal(backwards.flip(0), resample_trajectory(given, 5, method))
    assert even_times(4, 0.0, 3.0).tolist() == [0, 1, 2, 3]


def test_linear_by_hand() -> None:
    path = resample_trajectory(curve([0, 0], [4, 8], [5, 0]), [0.25, 1.5], "linear")
    assert path.tolist() == [[1, 2], [4.5, 4]]


def test_slerp_walks_the_circle_at_constant_speed_and_interpolates_the_norm() -> None:
    given = curve([2, 0], [0, 4])  # a quarter turn, norms 2 and 4
    path = resample_trajectory(given, [1 / 3, 0.5, 2 / 3], "slerp")
    angles = torch.tensor([math.pi / 6, math.pi / 4, math.pi / 3], dtype=torch.float64)
    norms = torch.tensor([8 / 3, 3, 10 / 3], dtype=torch.float64)
    expected = norms[:, None] * torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(path, expected, atol=1e-14, rtol=0)


def test_slerp_keeps_the_norm_where_linear_lets_it_sag() -> None:
    given = latents(2)
    given = given / given.flatten(1).norm(dim=1).view(2, 1, 1, 1)
    middle = [resample_trajectory(given, [0.5], method).norm().item() for method in ("slerp", "linear")]
    assert middle[0] == pytest.approx(1, abs=1e-6)
    assert middle[1] < 0.75  # near 1 / sqrt(2), as random latents are near a right angle


@pytest.mark.parametrize(
    "pair",
    [([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0], [3.0, 6.0]), ([1.0, 2.0], [-1.0, -2.0]), ([0.0, 0.0], [1.0, 2.0])],
    ids=["same", "parallel", "opposite", "zero"],
)
def test_slerp_is_linear_where_there_is_no_great_circle(pair: tuple[list[float], list[float]]) -> None:
    given = curve(*pair)
    at = [0.0, 0.3, 0.5, 1.0]
    torch.testing.assert_close(resample_trajectory(given, at, "slerp"), resample_trajectory(given, at, "linear"))


@pytest.mark.parametrize("degrees", [1e-3, 0.1, 89.9, 90.1, 179.9])
def test_slerp_is_accurate_at_every_angle(degrees: float) -> None:
    angle = math.radians(degrees)
    path = resample_trajectory(curve([1, 0], [math.cos(angle), math.sin(angle)]), [0.25], "slerp")
    expected = curve([math.cos(angle / 4), math.sin(angle / 4)])
    torch.testing.assert_close(path, expected, atol=1e-12, rtol=0)


def test_catmull_rom_by_hand() -> None:
    path = resample_trajectory(curve([0.0], [1.0], [0.0], [2.0]), [1.5, 1.25], "catmull-rom")
    # 1/16 (-p0 + 9 p1 + 9 p2 - p3), and at u = 1/4 the textbook weights (-9, 111, 29, -3) / 128
    assert path[0].item() == pytest.approx((0 + 9 + 0 - 2) / 16)
    assert path[1].item() == pytest.approx((111 - 6) / 128)


@pytest.mark.parametrize("times", [None, [0.0, 0.5, 2.0, 2.25, 4.0]])
def test_catmull_rom_reproduces_a_parabola_everywhere(times: list[float] | None) -> None:
    knots = torch.arange(5, dtype=torch.float64) if times is None else torch.tensor(times, dtype=torch.float64)

    def parabola(t: torch.Tensor) -> torch.Tensor:
        return torch.stack([3 * t**2 - t + 1, -(t**2) + 5], dim=1)

    at = even_times(33, 0.0, 4.0)
    path = resample_trajectory(parabola(knots), at, "catmull-rom", times=times)
    torch.testing.assert_close(path, parabola(at), atol=1e-12, rtol=0)


def test_catmull_rom_agrees_with_scipy_given_the_same_slopes() -> None:
    knots, given = [0.0, 1.0, 1.5, 4.0, 5.0], latents(5, torch.float64).flatten(1)
    slopes = []
    for i in range(5):  # the slope at knot i of the parabola through it and its neighbours
        j = min(max(i, 1), 3)
        coefficients = torch.linalg.solve(
            torch.vander(torch.tensor(knots[j - 1 : j + 2], dtype=torch.float64)), given[j - 1 : j + 2]
        )
        slopes.append(2 * coefficients[0] * knots[i] + coefficients[1])
    at = even_times(41, 0.0, 5.0)
    expected = torch.from_numpy(CubicHermiteSpline(knots, given.numpy(), torch.stack(slopes).numpy())(at.numpy()))
    torch.testing.assert_close(resample_trajectory(given, at, times=knots), expected, atol=1e-10, rtol=1e-10)


def test_the_velocity_is_continuous_for_catmull_rom_alone() -> None:
    given, step = latents(5, torch.float64), 1e-5

    def jump(method: Path) -> float:
        """The largest difference of the velocities before and after an inner latent."""
        jumps = []
        for knot in (1.0, 2.0, 3.0):
            before, at, after = resample_trajectory(given, [knot - step, knot, knot + step], method)
            jumps.append(((after - at) - (at - before)).norm().item() / step)
        return max(jumps)

    assert jump("catmull-rom") < 1e-2  # step * the jump of the second derivative
    assert jump("linear") > 1
    assert jump("slerp") > 1


@pytest.mark.parametrize("method", METHODS)
def test_the_times_of_the_latents_can_be_uneven(method: Path) -> None:
    given, times = latents(4), [0.0, 0.2, 1.0, 1.1]
    assert torch.equal(resample_trajectory(given, times, method, times=times), given)
    if method == "linear":
        path = resample_trajectory(given, [0.6], method, times=times)
        torch.testing.assert_close(path[0], (given[1] + given[2]) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_two_latents_are_enough_and_a_standstill_stays_still(method: Path) -> None:
    still = latents(1).repeat(3, 1, 1, 1)
    torch.testing.assert_close(resample_trajectory(still, 9, method), still[:1].repeat(9, 1, 1, 1))
    assert resample_trajectory(latents(2), 5, method).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_the_latents(method: Path) -> None:
    given = latents(3, torch.float64)[:, :1, :1, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: resample_trajectory(z, [0.3, 1.6], method), given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": torch.zeros(1, 4, 3, 5), "frames": 3}, "F >= 2, got [1, 4, 3, 5]"),
        ({"latents": latents(3), "frames": 1}, "frames: expected at least 2, the first and the last, got 1"),
        ({"latents": latents(3), "frames": [0.0, 2.5]}, "time 2.5 is outside of the path, which goes from 0 to 2"),
        ({"latents": latents(3), "frames": [float("nan")]}, "time nan is outside"),
        ({"latents": latents(3), "frames": 3, "method": "cubic"}, "one of linear, slerp, catmull-rom, got 'cubic'"),
        ({"latents": latents(3), "frames": 3, "times": [0, 1]}, "expected 3 increasing numbers"),
        ({"latents": latents(3), "frames": 3, "times": [0, 1, 1]}, "expected 3 increasing numbers"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resample_trajectory(**arguments)  # type: ignore[arg-type]
