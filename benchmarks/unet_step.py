"""The loss inside a real training step: a UNet's forward and backward with the loss between them.

The step is split where the loss begins and ends, so that the loss is timed where it lives: after a forward pass that
has emptied the caches, before a backward pass that waits for it. Contenders take turns, as everywhere here.

    step = [UNet forward] -> [loss, its gradient to the prediction] -> [UNet backward]
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.problems import DTYPES, Case, Problem
from benchmarks.registry import EAGER, Provider, Step, eager, providers, with_gradient
from benchmarks.results import Row
from benchmarks.run import Effort, check
from benchmarks.truth import establish

PLAIN = "plain mse"
NEEDED = ("diffusers", "transformers")


def why_not() -> str:
    """What is missing for this benchmark; "" when it can run."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed; pip install {' '.join(missing)}" if missing else ""


def tiny_unet() -> tuple[Any, tuple[int, int, int], tuple[int, int]]:
    """(UNet, shape of a latent, shape of the prompt's embedding) of the package's tiny InstructPix2Pix."""
    from contrastive_i2v.models import tiny

    return tiny.build_unet(), (4, 16, 16), (tiny.PROMPT_LENGTH, tiny.PROMPT_FEATURES)


def stable_diffusion_unet() -> tuple[Any, tuple[int, int, int], tuple[int, int]]:
    """The same for Stable Diffusion 1.5 in InstructPix2Pix form at 256x256, 860 M parameters, random weights."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=32, in_channels=8, out_channels=4, block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2, cross_attention_dim=768, attention_head_dim=8,
    )  # fmt: skip
    return unet, (4, 32, 32), (77, 768)


UNETS = {"tiny": tiny_unet, "sd1.5": stable_diffusion_unet}


def plain(problem: Problem) -> Tensor:
    return F.mse_loss(problem.prediction, problem.target)


class UNetStep:
    """One UNet with a batch; `run` makes one step with a loss and returns (step, loss) in microseconds."""

    def __init__(self, unet_name: str, case: Case) -> None:
        self.case = case
        torch.manual_seed(0)
        unet, self.latent, prompt = UNETS[unet_name]()
        dtype = DTYPES[case.dtype]
        self.unet = unet.to(case.device, dtype)
        self.problem = Problem.random(case)
        self.inputs = torch.randn(case.size, 8, *self.latent[1:], device=case.device, dtype=dtype)
        self.timesteps = torch.randint(0, 1000, (case.size,), device=case.device)
        self.prompts = torch.randn(case.size, *prompt, device=case.device, dtype=dtype)

    def run(self, step: Step) -> tuple[float, float]:
        marks = [self._mark()]
        output = self.unet(self.inputs, self.timesteps, self.prompts, return_dict=False)[0]  # [B, *latent]
        marks.append(self._mark())
        prediction = output.detach().flatten(1).requires_grad_()
        _, gradient = step(dataclasses.replace(self.problem, prediction=prediction))
        marks.append(self._mark())
        output.backward(gradient.view_as(output))
        marks.append(self._mark())
        self.unet.zero_grad(set_to_none=True)
        return self._between(marks[0], marks[3]), self._between(marks[1], marks[2])

    def _mark(self) -> Any:
        if self.case.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: Any, last: Any) -> float:
        if self.case.device == "cpu":
            return float(last - first) * 1e6
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e3


def run_unet(
    unet_name: str, size: int, dtype: str, device: str, effort: Effort, tick: Callable[[str], None] = lambda what: None
) -> list[Row]:
    """Rows of the plain diffusion loss, of eager's contrastive loss and of ours, in one UNet."""
    elements = {"tiny": 1024, "sd1.5": 4096}[unet_name]
    case = Case(size=size, elements=elements, dtype=dtype, device=device, cache="cold")
    bench = UNetStep(unet_name, case)
    truth = establish(bench.problem, with_gradient(eager))
    rows: dict[str, Row] = {PLAIN: {"status": "timed"}}
    steps: dict[str, Step] = {PLAIN: with_gradient(plain)}
    for name, provider in providers(device).items():
        if isinstance(provider, Provider) and (name == EAGER or name.startswith("ours:")):
            rows[name], step = check(case, name, provider, bench.problem, truth)
            if step is not None:
                steps[name] = step
    losses: dict[str, list[float]] = {name: [] for name in steps}

    def sample(name: str, step: Step) -> float:
        step_us, loss_us = bench.run(step)
        losses[name].append(loss_us)
        return step_us

    samplers = {name: functools.partial(sample, name, step) for name, step in steps.items()}
    for sampler in samplers.values():
        sampler()  # warm up
    for taken in losses.values():
        taken.clear()
    times = measure.in_turns(samplers, effort.rounds, effort.seconds, lambda: tick(f"unet {unet_name}"))
    for name, taken in times.items():
        share = measure.quantiles([loss / step for loss, step in zip(losses[name], taken, strict=True)])
        rows[name] |= {
            "step": measure.summarize(taken, times[EAGER] if EAGER in times and name != EAGER else None),
            "loss": measure.summarize(losses[name], losses[EAGER] if EAGER in times and name != EAGER else None),
            "share": dict(zip(("p20", "median", "p80"), share, strict=True)),
        }
    parameters = sum(parameter.numel() for parameter in bench.unet.parameters())
    about = {"unet": unet_name, "parameters": parameters, "size": size, "elements": elements, "dtype": dtype}
    return [{"provider": name, **about, **row} for name, row in rows.items()]
