"""Frames between frames: a path through the latents of a rollout, sampled at any times.

Pure functions; every path passes exactly through the latents it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Path = Literal["linear", "slerp", "catmull-rom"]
"""How to go from one latent to the next."""
PARALLEL = 1e-6
"""Below this sine two latents have no great circle between them (the same direction, or opposite ones)."""


def resample_trajectory(
    latents: Tensor,
    frames: int | Sequence[float] | Tensor,
    method: Path = "catmull-rom",
    *,
    times: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """The path through F latents, at as many frames or at the times asked for.

    Between z_i at time t_i and z_{i+1} at t_{i+1}, with u = (t - t_i) / (t_{i+1} - t_i):

        linear:       (1 - u) z_i + u z_{i+1}
        slerp:        ((1 - u) |z_i| + u |z_{i+1}|) (sin((1 - u) a) d_i + sin(u a) d_{i+1}) / sin(a),
                      d = z / |z| over the whole latent, a = the angle between d_i and d_{i+1}
        catmull-rom:  the cubic with these ends and the slopes m_i, m_{i+1}; m_i is that of the parabola through
                      z_{i-1}, z_i, z_{i+1}, so the velocity is continuous (C1 in time). At evenly spaced times
                      m_i = (z_{i+1} - z_{i-1}) / 2. The path's ends take the slope of their nearest parabola.

    slerp keeps the norm from sagging between distant latents, and falls back to linear where two of them are
    parallel, opposite or zero. With two latents catmull-rom is linear.

    Args:
        latents: [F, ...], usually [F, C, h, w], F >= 2.
        frames: how many, at even times from the first to the last of `times`, both included; or the times themselves.
        method: the path.
        times: of the given latents, increasing; None = 0, 1, .., F - 1.

    Returns:
        [F', ...] in the dtype of `latents`, worked out in float64; differentiable.

    Raises:
        ValueError: fewer than two latents or frames, times that don't increase or aren't one a latent, a time outside
            of them, or another method.

    Sources: Shoemake, "Animating Rotation with Quaternion Curves" (1985); Catmull and Rom, "A Class of Local
    Interpolating Splines" (1974), on uneven times as Barry and Goldman (1988).
    """
    if latents.ndim < 2 or len(latents) < 2:
        raise ValueError(f"latents: expected [F, ...] with F >= 2, got {list(latents.shape)}")
    if method not in get_args(Path):
        raise ValueError(f"method: expected one of {', '.join(get_args(Path))}, got {method!r}")
    knots = _knots(len(latents), times)  # [F]
    at = even_times(frames, float(knots[0]), float(knots[-1])) if isinstance(frames, int) else _as_times(frames)
    outside = at[~((at >= knots[0]) & (at <= knots[-1]))]
    if len(outside):
        raise ValueError(
            f"frames: time {float(outside[0]):g} is outside of the path, which goes from {float(knots[0]):g} to "
            f"{float(knots[-1]):g}"
        )

    segment = (torch.searchsorted(knots, at, right=True) - 1).clamp(max=len(knots) - 2)  # [F']
    spans = knots.diff()
    u = (at - knots[segment]) / spans[segment]
    device, shape = latents.device, (-1, *[1] * (latents.ndim - 1))
    path: Callable[..., Tensor] = {"linear": _linear, "slerp": _slerp, "catmull-rom": _catmull_rom}[method]
    segment, spans, u = segment.to(device), spans.to(device), u.to(device).view(shape)
    between = path(latents.double(), segment, u, spans.view(shape)).to(latents.dtype)
    # the given latents themselves, not to rounding
    return torch.where(u == 0, latents[segment], torch.where(u == 1, latents[segment + 1], between))


def even_times(count: int, first: float, last: float) -> Tensor:
    """`count` times `[count]` float64 from `first` to `last`, both included. Raises ValueError below two.

    Divided once each, so that whole numbers come out whole, as `torch.linspace` doesn't promise.
    """
    if count < 2:
        raise ValueError(f"frames: expected at least 2, the first and the last, got {count}")
    steps = torch.arange(count, dtype=torch.float64)
    return first + steps * (last - first) / (count - 1)


def _knots(count: int, times: Sequence[float] | Tensor | None) -> Tensor:
    if times is None:
        return torch.arange(count, dtype=torch.float64)
    knots = _as_times(times)
    if len(knots) != count or not (knots.diff() > 0).all() or not torch.isfinite(knots).all():
        raise ValueError(f"times: expected {count} increasing numbers, one a latent, got {knots.tolist()}")
    return knots


def _as_times(times: Sequence[float] | Tensor) -> Tensor:
    values = torch.as_tensor(times, dtype=torch.float64).cpu()
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"times: expected [F'] with F' >= 1, got {list(values.shape)}")
    return values


def _linear(latents: Tensor, segment: Tensor, u: Tensor, spans: Tensor) -> Tensor:
    return (1 - u) * latents[segment] + u * latents[segment + 1]


def _slerp(latents: Tensor, segment: Tensor, u: Tensor, spans: Tensor) -> Tensor:
    every = tuple(range(1, latents.ndim))
    norms = torch.linalg.vector_norm(latents, dim=every, keepdim=True)
    directions = latents / torch.where(norms > 0, norms, 1.0)
    start, end = directions[segment], directions[segment + 1]
    # Kahan's form: an arccos would lose half the digits near 0 and pi
    angle = 2 * torch.atan2(
        torch.linalg.vector_norm(end - start, dim=every, keepdim=True),
        torch.linalg.vector_norm(end + start, dim=every, keepdim=True),
    )
    apart = (angle.sin() > PARALLEL) & (norms[segment] > 0) & (norms[segment + 1] > 0)
    angle = torch.where(apart, angle, 1.0)
    norm = (1 - u) * norms[segment] + u * norms[segment + 1]
    arc = norm * (((1 - u) * angle).sin() * start + (u * angle).sin() * end) / angle.sin()
    return torch.where(apart, arc, _linear(latents, segment, u, spans))


def _catmull_rom(latents: Tensor, segment: Tensor, u: Tensor, spans: Tensor) -> Tensor:
    """Cubic Hermite segments; `spans [F - 1, 1, ...]` are the times between the latents."""
    chords = latents.diff(dim=0) / spans  # [F - 1, ...]
    if len(chords) == 1:
        return _linear(latents, segment, u, spans)
    inner = (spans[1:] * chords[:-1] + spans[:-1] * chords[1:]) / (spans[1:] + spans[:-1])  # [F - 2, ...]
    slopes = torch.cat([2 * chords[:1] - inner[:1], inner, 2 * chords[-1:] - inner[-1:]])  # [F, ...]
    start, end, span = latents[segment], latents[segment + 1], spans[segment]
    return (
        (1 + 2 * u) * (1 - u) ** 2 * start
        + u * (1 - u) ** 2 * span * slopes[segment]
        + u**2 * (3 - 2 * u) * end
        - u**2 * (1 - u) * span * slopes[segment + 1]
    )
