"""The float64 truth that every result is held against, and the bar that eager PyTorch sets.

Written apart from the package: the equations over strips of queries, so that B = N = 65,536 fits on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems import Problem

ROWS_CHECKED = 1024
"""Above so many queries the gradient of a random sample of them is checked; the loss is always all of them."""
STRIP = 1024


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Loss and gradient in float64, and how far from them a result may be."""

    loss: float
    gradient: Tensor  # [rows, D]
    rows: Tensor  # [rows], the queries whose gradient this is
    gradient_bar: float
    loss_bar: float

    def errors(self, loss: Tensor, gradient: Tensor) -> tuple[float, float]:
        """(relative error of the loss, of the gradient); NaN where a value is."""
        loss_error = abs(float(loss.detach()) - self.loss) / abs(self.loss)
        return loss_error, relative_error(gradient[self.rows], self.gradient)

    def accepts(self, loss_error: float, gradient_error: float) -> bool:
        """False for NaN as well."""
        return loss_error <= self.loss_bar and gradient_error <= self.gradient_bar


def relative_error(value: Tensor, truth: Tensor) -> float:
    """`|value - truth| / |truth|` in float64."""
    truth = truth.double()
    return float((value.detach().double() - truth).norm() / truth.norm())


def exact(problem: Problem, rows: Tensor, strip: int = STRIP) -> tuple[float, Tensor]:
    """(loss over all queries, its gradient [rows, D] at `rows`), in float64, `strip` queries at a time."""
    banks = [bank.double() for bank in problem.banks]
    if problem.normalize:
        banks = [F.normalize(bank, dim=1) for bank in banks]
    size, elements = problem.prediction.shape
    wanted = torch.zeros(size, dtype=torch.bool, device=rows.device)
    wanted[rows] = True
    loss = 0.0
    gradients = torch.empty(size if len(rows) == size else len(rows), elements, dtype=torch.float64, device=rows.device)
    place = torch.empty(size, dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    for start in range(0, size, strip):
        part = problem.queries(torch.arange(start, min(start + strip, size), device=rows.device))
        f, x, y = (tensor.detach().double() for tensor in (part.prediction, part.noisy, part.target))
        skip, out = part.c_skip.double()[:, None], part.c_out.double()[:, None]
        x0 = skip * x + out * f  # [strip, D]
        norm = x0.norm(dim=1, keepdim=True) if problem.normalize else torch.ones_like(skip)
        keep = wanted[start : start + strip]
        loss += float((f - y).square().mean(1).sum())
        gradient = 2 * (f - y)[keep] / elements
        for bank in banks:
            scores = (x0 / norm) @ bank.T / problem.temperature  # [strip, N]
            loss += float(F.cross_entropy(scores, part.positives, reduction="sum")) / elements
            residual = scores[keep].softmax(1)
            residual[torch.arange(len(residual), device=rows.device), part.positives[keep]] -= 1
            pull = residual @ bank  # dCE/d(x0 / norm), times the temperature
            if problem.normalize:
                direction = (x0 / norm)[keep]
                pull -= (pull * direction).sum(1, keepdim=True) * direction
            gradient += (out / norm)[keep] * pull / (elements * problem.temperature)
        gradients[place[start : start + strip][keep]] = gradient / size
    return loss / size, gradients


def establish(problem: Problem, eager: Callable[[Problem], tuple[Tensor, Tensor]]) -> Truth:
    """The truth of a problem, with twice eager's own error in the same dtype as the bar.

    Eager's loss can be right by luck, so the loss may always be 8 times the dtype's spacing away.
    """
    size, device = len(problem.prediction), problem.prediction.device
    rows = torch.arange(size, device=device)
    if size > ROWS_CHECKED:
        rows = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:ROWS_CHECKED].to(device)
    loss, gradient = exact(problem, rows)
    # all of eager's logits may not fit; those of the sample err just as much
    sample = problem.queries(rows)
    sample_loss, sample_gradient = loss, gradient
    if len(rows) < size:
        sample_loss, sample_gradient = exact(sample, torch.arange(len(rows), device=device))
    eager_loss, eager_gradient = eager(sample)
    return Truth(
        loss=loss,
        gradient=gradient,
        rows=rows,
        gradient_bar=2 * relative_error(eager_gradient, sample_gradient),
        loss_bar=max(
            2 * abs(float(eager_loss) - sample_loss) / abs(sample_loss),
            8 * torch.finfo(problem.prediction.dtype).eps,
        ),
    )
