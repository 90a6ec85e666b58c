"""`guided_step` in Triton: one elementwise pass, every input read once, every copy of the result written once.

The reference is `contrastive_i2v.ops.guided_step.guided_step_reference`. Unverified on hardware.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def guided_step_kernel(
    p_sample,
    p_predictions,
    p_out,
    elements,
    sample_scale,
    prediction_scale,
    scale_1,
    scale_2,
    BRANCHES: tl.constexpr,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Past 2^31 elements an int32 offset wraps; blocks are reached by adding `elements`, never k * elements.
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < elements
    p_block = p_predictions + offsets
    if BRANCHES == 3:
        b_full = tl.load(p_block, mask).to(tl.float32)
        p_block += elements
        b_image = tl.load(p_block, mask).to(tl.float32)
        p_block += elements
        b_uncond = tl.load(p_block, mask).to(tl.float32)
        b_guided = b_uncond + scale_1 * (b_image - b_uncond) + scale_2 * (b_full - b_image)
    elif BRANCHES == 2:
        b_to = tl.load(p_block, mask).to(tl.float32)
        p_block += elements
        b_from = tl.load(p_block, mask).to(tl.float32)
        b_guided = b_from + scale_1 * (b_to - b_from)
    else:
        b_guided = tl.load(p_block, mask).to(tl.float32)
    b_sample = tl.load(p_sample + offsets, mask)
    b_out = sample_scale * b_sample + prediction_scale * b_guided
    p_copy = p_out + offsets
    for _ in tl.static_range(COPIES):
        tl.store(p_copy, b_out, mask)
        p_copy += elements


def guided_step(
    sample: Tensor,
    predictions: Tensor,
    sample_scale: float,
    prediction_scale: float,
    guidance_scales: Sequence[float],
    copies: int,
) -> Tensor:
    """x' [copies * B, *latent] float32; the arguments are those of the registered op."""
    if sample.dtype != torch.float32 or predictions.dtype == torch.float64:
        raise ValueError(
            f"sample is {sample.dtype} and predictions {predictions.dtype}: the triton backend takes a float32 sample "
            "and float32, bfloat16 or float16 predictions"
        )
    branches, size, elements = len(guidance_scales) + 1, sample.shape[0], sample.numel()
    if branches > 3 or predictions.numel() != branches * elements:
        raise ValueError(f"predictions has shape {list(predictions.shape)}: expected {branches} x {list(sample.shape)}")
    out = sample.new_empty((copies * size, *sample.shape[1:]))
    if out.numel() == 0:
        return out
    scale_1, scale_2 = (*guidance_scales, 0.0, 0.0)[:2]
    with torch.cuda.device_of(sample):
        guided_step_kernel[(triton.cdiv(elements, BLOCK),)](
            sample.contiguous(),
            predictions.contiguous(),
            out,
            elements,
            sample_scale,
            prediction_scale,
            scale_1,
            scale_2,
            BRANCHES=branches,
            COPIES=copies,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return out
