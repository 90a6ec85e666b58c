"""Random problems for the op's tests, and the error bar that they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_i2v.ops import available_backends, contrastive_diffusion_loss

# Of CPU tensors: Triton takes them in its interpreter, where there is no GPU. tests/kernels and tests/csrc use GPUs.
BACKENDS = [
    name
    for name in ("reference", "cpu", "triton")
    if available_backends()[name] == "available" and not (name == "triton" and torch.cuda.is_available())
]
# For tests that take Triton's interpreter seconds; those that it answers at once stay in `make test`.
BACKENDS_BUT_SLOW = [pytest.param(name, marks=pytest.mark.triton) if name == "triton" else name for name in BACKENDS]


def make(
    queries: int,
    candidates: Sequence[int],
    latent: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    options: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Keyword arguments of one call; `options` also fills every optional tensor."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def rand(size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64).to(wide)

    def pick(low: int, high: int, size: int) -> Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    elements = int(torch.Size(latent).numel())
    arguments: dict[str, Any] = {
        "prediction": randn(queries, *latent),
        "noisy": randn(queries, *latent),
        "target": randn(queries, *latent),
        "c_skip": 0.5 + rand(queries),
        "c_out": -0.5 - rand(queries),
        "banks": [randn(n, *latent) for n in candidates],
        "positives": [pick(0, n, queries) for n in candidates],
        "temperature": elements**0.5,
    }
    if options:
        arguments["positives"] = [pick(-1, n, queries) for n in candidates]
        arguments |= {
            "bank_weights": [0.5 + k for k in range(len(candidates))],
            "mse_weights": rand(queries),
            "contrastive_weights": rand(queries),
            "query_groups": pick(0, 3, queries),
            "bank_groups": [pick(0, 3, n) for n in candidates],
        }
    return arguments


def to_double(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same problem in float64."""

    def wide(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().double() if value.is_floating_point() else value
        return [wide(one) for one in value] if isinstance(value, list) else value

    return {name: wide(value) for name, value in arguments.items()}


def run(arguments: dict[str, Any], backend: str | None = None) -> tuple[Any, Tensor]:
    """(output, gradient of the prediction)."""
    prediction = arguments["prediction"].detach().clone().requires_grad_()
    out = contrastive_diffusion_loss(**{**arguments, "prediction": prediction}, backend=backend)
    out.loss.backward()
    assert prediction.grad is not None
    return out, prediction.grad


def eager(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(loss, gradient) by what one would write without the op: everything in the dtype of the latents but the
    softmax, which is in float32. Knows only the arguments without options."""
    prediction = arguments["prediction"].detach().clone().requires_grad_()
    dtype = prediction.dtype
    f, x, y = (t.flatten(1) for t in (prediction, arguments["noisy"], arguments["target"]))
    x0 = arguments["c_skip"].to(dtype)[:, None] * x + arguments["c_out"].to(dtype)[:, None] * f
    loss = F.mse_loss(f, y).to(arguments["c_skip"].dtype)
    for bank, positives in zip(arguments["banks"], arguments["positives"], strict=True):
        z = bank.flatten(1)
        if arguments.get("normalize"):
            logits = F.normalize(x0, dim=1) @ F.normalize(z, dim=1).T / arguments["temperature"]
        else:
            logits = x0 @ z.T / arguments["temperature"]
        wide = logits if dtype == torch.float64 else logits.float()
        loss = loss + F.cross_entropy(wide, positives) / f.shape[1]
    loss.backward()
    assert prediction.grad is not None
    return loss.detach(), prediction.grad


def error(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth| in float64."""
    value, truth = value.detach().double(), truth.detach().double()
    return float((value - truth).norm() / truth.norm())


def near_uniform() -> dict[str, Any]:
    """A bank around one shared mean: every p is about 1/N, the gradient is a small difference."""
    arguments = make(9, [500], [252], seed=1)
    arguments["banks"] = [3 + 0.01 * arguments["banks"][0]]
    return arguments | {"temperature": 1.0}


def saturated() -> dict[str, Any]:
    """The softmax is 0 or 1, sometimes on the wrong candidate."""
    return make(13, [31, 17], [252], seed=2) | {"temperature": 0.05}


def vanishing_signal() -> dict[str, Any]:
    """abar -> 0 with epsilon prediction: x0 is the difference of two large numbers."""
    arguments = make(7, [19], [252], seed=3)
    abar = torch.logspace(-8, -3, 7)
    return arguments | {"c_skip": abar.rsqrt(), "c_out": -((1 - abar) / abar).sqrt(), "temperature": 30.0}


def ragged() -> dict[str, Any]:
    return make(5, [13, 507], [123], seed=4)


HAZARDS = {f.__name__: f for f in (near_uniform, saturated, vanishing_signal, ragged)}
"""Problems that are hard on the numerics; the functions say how."""
