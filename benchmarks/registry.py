"""Who is measured. A provider turns a problem into a function that runs forward and backward once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_i2v.ops import available_backends, contrastive_diffusion_loss

Step = Callable[[], tuple[Tensor, Tensor]]  # () -> (loss, dloss/dprediction)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Random latents of B queries, K banks of N = B candidates, D elements."""

    prediction: Tensor
    noisy: Tensor
    target: Tensor
    c_skip: Tensor
    c_out: Tensor
    banks: list[Tensor] = field(repr=False)
    temperature: float
    normalize: bool

    @staticmethod
    def random(
        size: int, elements: int, banks: int, dtype: torch.dtype, device: str, normalize: bool, seed: int = 0
    ) -> Problem:
        generator = torch.Generator().manual_seed(seed)

        def latents() -> Tensor:
            return torch.randn(size, elements, generator=generator).to(device, dtype)

        abar = torch.rand(size, generator=generator) * 0.9 + 0.05
        return Problem(
            prediction=latents().requires_grad_(),
            noisy=latents(),
            target=latents(),
            c_skip=abar.rsqrt().to(device),
            c_out=(-((1 - abar) / abar).sqrt()).to(device),
            banks=[latents() for _ in range(banks)],
            temperature=0.07 if normalize else elements**0.5,
            normalize=normalize,
        )

    def double(self) -> Problem:
        def wide(tensor: Tensor) -> Tensor:
            return tensor.detach().double()

        return Problem(
            prediction=wide(self.prediction).requires_grad_(),
            noisy=wide(self.noisy),
            target=wide(self.target),
            c_skip=wide(self.c_skip),
            c_out=wide(self.c_out),
            banks=[wide(bank) for bank in self.banks],
            temperature=self.temperature,
            normalize=self.normalize,
        )


def eager_loss(
    prediction: Tensor, noisy: Tensor, target: Tensor, c_skip: Tensor, c_out: Tensor, banks: list[Tensor],
    temperature: float, normalize: bool,
) -> Tensor:  # fmt: skip
    """What one would write without this package, in the dtype of the inputs, softmax in float32."""
    dtype = prediction.dtype
    x0 = c_skip[:, None].to(dtype) * noisy + c_out[:, None].to(dtype) * prediction
    positives = torch.arange(prediction.shape[0], device=prediction.device)
    loss = F.mse_loss(prediction, target)
    for bank in banks:
        if normalize:
            logits = F.normalize(x0, dim=1) @ F.normalize(bank, dim=1).T / temperature
        else:
            logits = x0 @ bank.T / temperature
        wide = logits if dtype == torch.float64 else logits.float()
        loss = loss + F.cross_entropy(wide, positives) / prediction.shape[1]
    return loss


def _step(problem: Problem, loss_of: Callable[..., Tensor]) -> Step:
    def step() -> tuple[Tensor, Tensor]:
        p = problem
        arguments = (p.prediction, p.noisy, p.target, p.c_skip, p.c_out, p.banks)
        loss = loss_of(*arguments, temperature=p.temperature, normalize=p.normalize)
        (gradient,) = torch.autograd.grad(loss, p.prediction)
        return loss, gradient

    return step


def eager(problem: Problem) -> Step:
    return _step(problem, eager_loss)


def compiled(problem: Problem) -> Step:
    return _step(problem, torch.compile(eager_loss, fullgraph=True, dynamic=False))


def ours(backend: str) -> Callable[[Problem], Step]:
    def provider(problem: Problem) -> Step:
        return _step(problem, lambda *args, **named: contrastive_diffusion_loss(*args, **named, backend=backend).loss)

    return provider


def providers(device: str) -> dict[str, Callable[[Problem], Step]]:
    """Every provider that can run on `device`; eager comes first, it sets the accuracy bar."""
    backends = [name for name, state in available_backends().items() if state == "available"]
    usable = [name for name in backends if name != "cpu" or device == "cpu"]
    return {"eager": eager, "torch.compile": compiled, **{f"ours:{name}": ours(name) for name in usable}}
