"""The op `guided_step`: three-way guidance and a linear sampler update in one pass over the latents.

Torch alone runs the reference; C++ registers a kernel for the CPU, and `guided_step_triton` is the Triton one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from contrastive_i2v.ops import _validation as check
from contrastive_i2v.ops._backends import _say_once, available_backends

BACKENDS = ("reference", "cpu", "triton")
_PREDICTION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SCHEMA = (
    "(Tensor sample, Tensor predictions, float sample_scale, float prediction_scale, float[] guidance_scales, "
    "int copies) -> Tensor"
)


def guided_step(
    sample: Tensor,
    predictions: Tensor,
    sample_scale: float,
    prediction_scale: float,
    *,
    guidance_scale: float,
    image_guidance_scale: float,
    fractional: bool = False,
    copies: int = 1,
    backend: str | None = None,
) -> Tensor:
    """x' = sample_scale * x + prediction_scale * e, where e is the guided prediction.

        e = e(0,0) + s_I * (e(I,0) - e(0,0)) + s_T * (e(I,T) - e(I,0))

    and with `fractional`, where I_k is the image noised to a level,

        e = e(0,0) + s_I * (e(I_k,0) - e(0,0)) + (e(I,0) - e(I_k,0)) + s_T * (e(I,T) - e(I,0))

    `predictions` holds the denoiser's batched output as it is: one block of B for each of
    `guidance_branches(guidance_scale, image_guidance_scale, fractional)`, in that order. The maths is float32,
    or float64 when `sample` is. The result doesn't depend on the number of threads. No gradients: this is for sampling.

    Args:
        sample: x [B, *latent], float32 or float64.
        predictions: [branches * B, *latent], float32, bfloat16, float16 or float64.
        sample_scale, prediction_scale: `contrastive_i2v.sampling.linear_steps` has them for DDIM and Euler.
        guidance_scale: s_T, towards the text.
        image_guidance_scale: s_I, towards the image.
        fractional: whether s_I is towards the noised image. Four blocks have no kernel: PyTorch's own code runs.
        copies: how often x' is written, one block after another: the next batched input of the denoiser.
        backend: "reference", "cpu" or "triton", strictly; None picks the fastest that was verified.

    Returns:
        x' [copies * B, *latent] in sample's dtype, contiguous.

    Raises:
        ValueError: wrong types; shapes, dtypes or devices that disagree; copies < 1; an input that requires a gradient.
        RuntimeError: a named backend is missing or cannot do what is asked.

    Sources: Brooks et al., InstructPix2Pix (arXiv 2211.09800), equation 3; Song et al., History-Guided Video
    Diffusion (arXiv 2502.06764), section 5, for `fractional`; Song et al., DDIM (arXiv 2010.02502), equation 12 with
    eta = 0, of which Euler's step is a case.
    """
    sample_scale = check.number("sample_scale", sample_scale)
    prediction_scale = check.number("prediction_scale", prediction_scale)
    guidance_scale = check.number("guidance_scale", guidance_scale)
    image_guidance_scale = check.number("image_guidance_scale", image_guidance_scale)
    check.flag("fractional", fractional)
    branches = guidance_branches(guidance_scale, image_guidance_scale, fractional)
    _check(sample, predictions, branches, copies)
    # e as a walk e(0,0) -> e(I_k,0) -> e(I,0) -> e(I,T) over the branches that were run; reaching one costs its scale
    image_scale = 1.0 if "history" in branches else image_guidance_scale
    scale_of = {"history": image_guidance_scale, "image": image_scale, "full": guidance_scale}
    if "image" not in branches:
        scale_of["full"] = image_scale  # which is s_T
    walk = branches[::-1]
    scales = [scale_of[branch] for branch in walk[1:]]
    arguments = (sample, predictions, sample_scale, prediction_scale, scales, copies)
    chosen = _choose(backend, sample, predictions, len(branches))
    if chosen == "cpu":
        return torch.ops.contrastive_i2v.guided_step(*arguments)  # type: ignore[no-any-return]
    if chosen == "triton":
        return torch.ops.contrastive_i2v.guided_step_triton(*arguments)  # type: ignore[no-any-return]
    return guided_step_reference(*arguments)


def guidance_branches(guidance_scale: float, image_guidance_scale: float, fractional: bool = False) -> tuple[str, ...]:
    """Which of "full" e(I,T), "image" e(I,0), "history" e(I_k,0) and "uncond" e(0,0) have a say, in the order they are
    batched; "history" with `fractional` alone.

    A branch whose factor vanishes needn't be run: e(0,0) and e(I_k,0) where s_I = 1, e(I,0) where s_I = s_T, or s_T = 1
    beside e(I_k,0), e(I,T) where s_T = 0.
    """
    fractional = fractional and image_guidance_scale != 1
    needed = {
        "full": guidance_scale != 0,
        "image": guidance_scale != (1 if fractional else image_guidance_scale),
        "history": fractional,
        "uncond": image_guidance_scale != 1,
    }
    return tuple(branch for branch, has_say in needed.items() if has_say)


def guided_step_reference(
    sample: Tensor,
    predictions: Tensor,
    sample_scale: float,
    prediction_scale: float,
    guidance_scales: Sequence[float],
    copies: int,
) -> Tensor:
    """The registered op in plain PyTorch.

        e = p_0 + sum_k guidance_scales[k] * (p_{k+1} - p_k)

    p_0 is the last block of `predictions`. Differences come first: of predictions that are close, as those of
    a trained denoiser, they are nearly exact, and weights such as -6 and 7.5 would magnify the rounding of p.
    """
    *others, previous = predictions.to(sample.dtype).chunk(len(guidance_scales) + 1)
    guided = previous
    for scale, block in zip(guidance_scales, reversed(others), strict=True):
        guided = guided + scale * (block - previous)
        previous = block
    stepped = sample_scale * sample + prediction_scale * guided
    return stepped.contiguous().repeat(copies, *[1] * (sample.dim() - 1))


def _guided_step_triton(
    sample: Tensor,
    predictions: Tensor,
    sample_scale: float,
    prediction_scale: float,
    guidance_scales: Sequence[float],
    copies: int,
) -> Tensor:
    kernel = importlib.import_module("contrastive_i2v.kernels.guided_step")  # needs triton
    out: Tensor = kernel.guided_step(sample, predictions, sample_scale, prediction_scale, guidance_scales, copies)
    return out


def _guided_step_fake(
    sample: Tensor,
    predictions: Tensor,
    sample_scale: float,
    prediction_scale: float,
    guidance_scales: Sequence[float],
    copies: int,
) -> Tensor:
    # else a meta tensor among others would bring back memory that nothing filled
    check.same_device("predictions", predictions, sample, of="sample")
    return sample.new_empty((copies * sample.shape[0], *sample.shape[1:]))


for _name, _function in (("guided_step", guided_step_reference), ("guided_step_triton", _guided_step_triton)):
    torch.library.define(f"contrastive_i2v::{_name}", _SCHEMA)
    torch.library.impl(f"contrastive_i2v::{_name}", "CompositeExplicitAutograd")(_function)
    torch.library.register_fake(f"contrastive_i2v::{_name}", _guided_step_fake)


def _check(sample: Tensor, predictions: Tensor, branches: tuple[str, ...], copies: int) -> None:
    check.floating("sample", sample)
    check.floating("predictions", predictions)
    if sample.dim() < 1 or sample.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"sample is {sample.dtype} {list(sample.shape)}: expected float32 or float64 [B, *latent]; a sample that "
            "is rounded to less at every step drifts"
        )
    check.same_device("predictions", predictions, sample, of="sample")
    expected = (len(branches) * sample.shape[0], *sample.shape[1:])
    if predictions.shape != expected:
        raise ValueError(
            f"predictions has shape {list(predictions.shape)}: expected {list(expected)}, sample's "
            f"{list(sample.shape)} for each of the branches that these scales need ({', '.join(branches)})"
        )
    check.count("copies", copies)
    if torch.is_grad_enabled() and (sample.requires_grad or predictions.requires_grad):
        name = "sample" if sample.requires_grad else "predictions"
        raise ValueError(f"{name} requires a gradient, but sampling has none: detach it, or use torch.no_grad()")


def _choose(backend: str | None, sample: Tensor, predictions: Tensor, branches: int) -> str:
    """The backend that runs: the one that was named, or else the fused one of the device if it can do the job."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: expected None or one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return "reference"
    name = backend or "cpu"
    why_not = _WHY_MISSING[name]
    if backend is None and sample.device.type != "cpu":
        why_not = "the Triton kernel is unverified on hardware, so only backend='triton' runs it"
    if why_not and backend is None and not torch.compiler.is_compiling():
        _say_once(f"guided_step runs as plain PyTorch on {sample.device.type}: {why_not}")
    if not why_not and sample.device.type not in _DEVICES[name]:
        why_not = f"the tensors are on {sample.device}"
    if not why_not and branches > 3:
        why_not = "it takes three branches at most"
    if not why_not and (sample.dtype != torch.float32 or predictions.dtype not in _PREDICTION_DTYPES):
        why_not = (
            f"it takes a float32 sample and float32, bfloat16 or float16 predictions, got {sample.dtype} "
            f"and {predictions.dtype}"
        )
    if why_not and backend is not None:
        raise RuntimeError(f"backend={backend!r} cannot be used: {why_not}. Use backend=None or 'reference'")
    return "reference" if why_not else name


def _why_no_cpu_kernel() -> str:
    state = available_backends()["cpu"]
    if state != "available":
        return state
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key("contrastive_i2v::guided_step", "CPU")
    return "" if has_kernel else "the C++ extension is older than this op: reinstall"


# a table and not a cached function: torch.compile would trace into one
_WHY_MISSING = {
    "cpu": _why_no_cpu_kernel(),
    "triton": "" if importlib.util.find_spec("triton") else "triton is not installed",
}
# Triton's interpreter, which is chosen when a kernel is defined, runs on the CPU
_DEVICES = {"cpu": ("cpu",), "triton": ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)}
