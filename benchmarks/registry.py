"""Who is measured. A provider makes, for a case, a step: forward and backward together, to the prediction."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.problems import Case, Problem
from contrastive_i2v.ops import available_backends, contrastive_diffusion_loss

Loss = Callable[[Problem], Tensor]
Step = Callable[[Problem], tuple[Tensor, Tensor]]  # (loss, dloss/dprediction), both new
EAGER, COMPILE, OURS, GEMM = "eager", "torch.compile", "ours:", "bare GEMM"
BF16_SWITCH = "CI2V_CPU_BF16"


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One contender."""

    make: Callable[[], Step]
    """Called once a case, so that what it compiles is compiled once."""
    why_not: Callable[[Case], str] = lambda case: ""
    """Why it cannot take a case; "" when it can."""
    graph: bool = True
    """Whether a CUDA graph can hold it; one that waits for the device cannot be captured."""
    is_floor: bool = False
    """A part of the work, as a yardstick: it gives no loss, so it has no accuracy to check."""


def with_gradient(loss: Loss) -> Step:
    def step(problem: Problem) -> tuple[Tensor, Tensor]:
        value = loss(problem)
        (gradient,) = torch.autograd.grad(value, problem.prediction)
        return value.detach(), gradient

    return step


def eager(problem: Problem) -> Tensor:
    """What one would write without this package: everything in the dtype of the inputs, softmax in float32."""
    p = problem
    return _eager(
        p.prediction, p.noisy, p.target, p.c_skip, p.c_out, p.banks, p.positives, p.temperature, p.normalize
    )  # fmt: skip


def _eager(
    prediction: Tensor, noisy: Tensor, target: Tensor, c_skip: Tensor, c_out: Tensor, banks: list[Tensor],
    positives: Tensor, temperature: float, normalize: bool,
) -> Tensor:  # fmt: skip
    dtype = prediction.dtype
    x0 = c_skip[:, None].to(dtype) * noisy + c_out[:, None].to(dtype) * prediction
    loss = F.mse_loss(prediction, target)
    for bank in banks:
        if normalize:
            logits = F.normalize(x0, dim=1) @ F.normalize(bank, dim=1).T / temperature
        else:
            logits = x0 @ bank.T / temperature
        wide = logits if dtype == torch.float64 else logits.float()
        loss = loss + F.cross_entropy(wide, positives) / prediction.shape[1]
    return loss


def _compiled(mode: str | None) -> Loss:
    function = torch.compile(_eager, fullgraph=True, dynamic=False, mode=mode)

    def loss(problem: Problem) -> Tensor:
        p = problem
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        result: Tensor = function(
            p.prediction, p.noisy, p.target, p.c_skip, p.c_out, p.banks, p.positives, p.temperature, p.normalize
        )  # fmt: skip
        return result

    return loss


def _ours(backend: str) -> Step:
    def loss(problem: Problem) -> Tensor:
        p = problem
        return contrastive_diffusion_loss(
            p.prediction, p.noisy, p.target, p.c_skip, p.c_out, p.banks, temperature=p.temperature,
            normalize=p.normalize, backend=backend,
        ).loss  # fmt: skip

    return with_gradient(loss)


def _ours_in_bf16(mode: str) -> Step:
    step = _ours("cpu")

    def switched(problem: Problem) -> tuple[Tensor, Tensor]:
        before = os.environ.get(BF16_SWITCH)
        os.environ[BF16_SWITCH] = mode  # read at each call
        try:
            return step(problem)
        finally:
            os.environ.pop(BF16_SWITCH)
            if before is not None:
                os.environ[BF16_SWITCH] = before

    return switched


def _peer(peer: peers.Peer) -> Step:
    return with_gradient(peer.load())


def bare_gemm(problem: Problem) -> tuple[Tensor, Tensor]:
    """The matrix products alone, two a bank on the same data, by the library that PyTorch calls."""
    with torch.no_grad():
        out = problem.noisy
        for bank in problem.banks:
            out = (problem.noisy @ bank.T) @ bank
        return out, out


def providers(device: str, bf16: Sequence[str] = ()) -> dict[str, Provider | str]:
    """Every provider's name -> itself, or why it is absent here. Eager comes first: the others are compared to it.

    `bf16`: values of CI2V_CPU_BF16 with which `ours:cpu` takes part again.
    """
    found: dict[str, Provider | str] = {
        EAGER: Provider(make=lambda: with_gradient(eager)),
        COMPILE: Provider(make=lambda: with_gradient(_compiled(None))),
    }
    if device == "cuda":
        # it replays graphs of its own
        name = f"{COMPILE} reduce-overhead"
        found[name] = Provider(make=lambda: with_gradient(_compiled("reduce-overhead")), graph=False)
    for backend, state in available_backends().items():
        elsewhere = {"cpu": "cuda", "triton": "cpu", "cuda": "cpu"}.get(backend) == device
        if state == "available" and elsewhere:
            state = f"it does not run on {device}"
        make = functools.partial(_ours, backend)
        found[f"{OURS}{backend}"] = Provider(make=make) if state == "available" else state
    for mode in bf16:
        make = functools.partial(_ours_in_bf16, mode)
        found[f"{OURS}cpu {BF16_SWITCH}={mode}"] = Provider(make=make)
    for peer in peers.PEERS:
        make = functools.partial(_peer, peer)
        found[peer.name] = peer.absent(device) or Provider(make=make, why_not=peer.why_not, graph=peer.graph)
    found[GEMM] = Provider(make=lambda: bare_gemm, is_floor=True)
    return found
