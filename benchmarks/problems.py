"""What is measured: a `Case` names a problem in a few numbers, a `Problem` holds its random tensors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Case:
    """B queries against K banks of N = B candidates, D elements each; forward and backward to the prediction."""

    size: int
    """B = N."""
    elements: int = 4096
    """D."""
    banks: int = 2
    """K."""
    dtype: str = "float32"
    normalize: bool = False
    """Cosine instead of the dot product."""
    cache: str = "hot"
    """hot: the same tensors each time; cold: copies in turn, three times the last-level cache in all."""
    device: str = "cpu"

    @property
    def flop(self) -> int:
        """Two matrix products a bank, forward and backward together: `8 B N D` for two banks."""
        return 4 * self.banks * self.size * self.size * self.elements

    @property
    def bytes(self) -> int:
        """Prediction, noisy and target read once, the gradient written once, each bank read once."""
        return (4 + self.banks) * self.size * self.elements * DTYPES[self.dtype].itemsize

    @property
    def gradient_bytes(self) -> int:
        return self.size * self.elements * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        similarity = "cosine" if self.normalize else "dot"
        banks = f"{self.banks} bank" + "s" * (self.banks != 1)
        return f"B=N={self.size} D={self.elements} {self.dtype} {banks} {similarity} {self.cache}"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The tensors of a case.

    Scaled so that both terms of the gradient weigh about the same and an error in either shows: the temperature is
    sqrt(D) (0.07 for the cosine), and the target is the prediction with a little noise, as late in a training.
    """

    prediction: Tensor  # [B, D], requires a gradient
    noisy: Tensor  # [B, D]
    target: Tensor  # [B, D]
    c_skip: Tensor  # [B] float32
    c_out: Tensor  # [B] float32
    banks: list[Tensor] = field(repr=False)  # K x [N, D]
    positives: Tensor  # [B] int64
    temperature: float
    normalize: bool

    @staticmethod
    def random(case: Case, seed: int = 0) -> Problem:
        """Epsilon prediction on a uniform abar: c_skip = 1/sqrt(abar), c_out = -sqrt((1 - abar)/abar)."""
        generator = torch.Generator(case.device).manual_seed(seed)
        dtype = DTYPES[case.dtype]

        def latents() -> Tensor:
            return torch.randn(case.size, case.elements, generator=generator, device=case.device).to(dtype)

        prediction = latents()
        abar = torch.rand(case.size, generator=generator, device=case.device) * 0.9 + 0.05
        return Problem(
            target=prediction.detach() + latents() / (4 * case.elements**0.5),
            prediction=prediction.requires_grad_(),
            noisy=latents(),
            c_skip=abar.rsqrt(),
            c_out=-((1 - abar) / abar).sqrt(),
            banks=[latents() for _ in range(case.banks)],
            positives=torch.arange(case.size, device=case.device),
            temperature=0.07 if case.normalize else case.elements**0.5,
            normalize=case.normalize,
        )

    def queries(self, rows: Tensor) -> Problem:
        """The same banks with these queries alone, whose gradient is `B / len(rows)` times as large."""
        picked = {
            name: getattr(self, name).detach()[rows]
            for name in ("prediction", "noisy", "target", "c_skip", "c_out", "positives")
        }
        picked["prediction"].requires_grad_()
        return dataclasses.replace(self, **picked)
