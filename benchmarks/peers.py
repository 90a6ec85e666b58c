"""Adapters for other people's fused losses: each computes the same thing as ours,
`mse + sum_k 1/D * cross_entropy(x0 @ z_k.T / temperature)`, with a gradient to the prediction alone.

They fuse the cross entropy over one matrix of candidates, so x0 and the diffusion loss are made by torch.compile for
them and a call is made for each bank: they aren't charged for what they don't claim to do. The temperature goes into
x0's coefficients, where it costs nothing. Banks need no gradient, so those that can skip the bank's gradient do.

Written against the wheels of the versions named here. Triton's interpreter has run Inf-CL's, Cut Cross Entropy's and
Liger's; no GPU has run any of them yet.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems import DTYPES, Case, Problem

CrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x [B, D], bank [N, D], positives [B]) -> mean, a scalar


def prologue(
    prediction: Tensor, noisy: Tensor, target: Tensor, c_skip: Tensor, c_out: Tensor, temperature: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(x0 / temperature, normalised first where asked for; diffusion loss)."""
    dtype = prediction.dtype
    scale = 1.0 if normalize else 1 / temperature
    skip, out = ((c * scale).to(dtype)[:, None] for c in (c_skip, c_out))
    x = skip * noisy + out * prediction
    if normalize:
        x = F.normalize(x, dim=1) / temperature
    return x, F.mse_loss(prediction, target)


def around(cross_entropy: CrossEntropy, make_x: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[Problem], Tensor]:
    """The whole loss around a peer's cross entropy."""

    def loss(problem: Problem) -> Tensor:
        p = problem
        x, total = make_x(p.prediction, p.noisy, p.target, p.c_skip, p.c_out, p.temperature, p.normalize)
        for bank in p.banks:
            candidates = F.normalize(bank, dim=1) if p.normalize else bank
            total = total + cross_entropy(x, candidates, p.positives) / x.shape[1]
        return total

    return loss


def _infcl() -> CrossEntropy:
    from inf_cl import cal_flash_loss

    def cross_entropy(x: Tensor, bank: Tensor, positives: Tensor) -> Tensor:
        # its kernels read rows in chunks of head_dim, a power of two from 16 to 256
        head = next(width for width in (256, 128, 64, 32, 16) if x.shape[1] % width == 0)
        result: Tensor = cal_flash_loss(x, bank, positives, head_dim=head).mean()
        return result

    return cross_entropy


def _cce() -> CrossEntropy:
    from cut_cross_entropy import linear_cross_entropy

    def cross_entropy(x: Tensor, bank: Tensor, positives: Tensor) -> Tensor:
        # filter_eps=None: no softmax block is skipped for being small
        result: Tensor = linear_cross_entropy(x, bank, positives, filter_eps=None)
        return result

    return cross_entropy


def _liger() -> CrossEntropy:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def cross_entropy(x: Tensor, bank: Tensor, positives: Tensor) -> Tensor:
        result: Tensor = liger_fused_linear_cross_entropy(x, bank, positives)
        return result

    return cross_entropy


def _quack() -> CrossEntropy:
    from quack.linear_cross_entropy import scaled_exp_linear_cross_entropy

    def cross_entropy(x: Tensor, bank: Tensor, positives: Tensor) -> Tensor:
        # a bank without a gradient is its "constant weight": no gradient of the bank is made
        result: Tensor = scaled_exp_linear_cross_entropy(x, bank, positives)
        return result

    return cross_entropy


def _infcl_limits(case: Case) -> str:
    return "" if case.elements % 16 == 0 else f"it takes D in multiples of 16, not {case.elements}"


def _cce_limits(case: Case) -> str:
    return "" if DTYPES[case.dtype].itemsize == 2 else f"its backward pass takes bfloat16 and float16, not {case.dtype}"


def _quack_limits(case: Case) -> str:
    if case.dtype != "bfloat16":
        return f"it takes bfloat16, not {case.dtype}"
    if case.size % 128 or case.elements % 8:
        return f"it takes N in multiples of 128 and D of 8, not N={case.size}, D={case.elements}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0):
        return "it takes compute capability 9.0"
    return ""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another project's loss and how to get it."""

    name: str
    module: str
    package: str
    cross_entropy: Callable[[], CrossEntropy]
    why_not: Callable[[Case], str] = lambda case: ""
    graph: bool = False
    """Whether it never waits for the device, so that a CUDA graph can hold it."""

    def absent(self, device: str) -> str:
        """Why it cannot be measured here; "" when it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"not installed; pip install {self.package}"
        return "" if device == "cuda" else "it needs a CUDA device"

    def load(self) -> Callable[[Problem], Tensor]:
        return around(self.cross_entropy(), torch.compile(prologue, fullgraph=True, dynamic=True))


PEERS = (
    Peer(
        name="Inf-CL", module="inf_cl", package="inf-cl==1.2.1",
        cross_entropy=_infcl, why_not=_infcl_limits, graph=True,
    ),
    Peer(
        name="Cut Cross Entropy", module="cut_cross_entropy", package="cut-cross-entropy==25.1.1",
        cross_entropy=_cce, why_not=_cce_limits,
    ),
    Peer(name="Liger", module="liger_kernel", package="liger-kernel==0.8.5", cross_entropy=_liger),
    Peer(
        name="quack", module="quack", package="quack-kernels==0.6.5",
        cross_entropy=_quack, why_not=_quack_limits, graph=True,
    ),
)  # fmt: skip
