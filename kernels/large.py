"""The large regime: strips of queries against one whole bank after another, so that memory is bounded by a strip.

    a strip:  prologue -> for each bank: scaled_exp (matrix product 1) -> glue -> gradient (matrix product 2)
    at the end, the loss

Both products are the 4 B N D FLOP a bank that the algebra asks for. x0 is rounded to 16 bits, as eager's is.
"""

from __future__ import annotations

import torch
import triton
from contrastive_i2v.kernels.arguments import Arguments, multiprocessors
from contrastive_i2v.kernels.configs import large_config, strip_rows
from contrastive_i2v.kernels.glue import glue_kernel, loss_kernel
from contrastive_i2v.kernels.gradient import gradient_kernel
from contrastive_i2v.kernels.prologue import bank_norm_kernel, prologue_kernel
from contrastive_i2v.kernels.scaled_exp import scaled_exp_kernel
from torch import Tensor


def run_large(a: Arguments, loss: Tensor, mse: Tensor, contrastive: Tensor, gradient: Tensor | None) -> None:
    """Fills the results. `a.banks` is not empty."""
    banks, queries, elements = len(a.banks), a.queries, a.elements
    dtype = a.strip_dot_dtype()
    dot_dtype, half = a.triton_dtype(dtype), dtype == torch.float16
    # The base-2 range of a weight: bfloat16 and float32 [2^-32, 2^32) at a tile's largest, float16 [2^7, 2^15).
    step, offset = (8.0, -7.0) if half else (64.0, 32.0)
    first, second, group = large_config(dtype, a.arch, a.normalize)
    programs = multiprocessors(loss.device)
    most = max(a.candidates(k) for k in range(banks))
    strip = strip_rows(queries, most, elements, dtype.itemsize, first.block_m)
    row_block, line_block = (min(strip, 256), 256) if a.arch == 0 else (4, 16)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=loss.device)

    def padded(k: int) -> int:
        block = max(first.block_n, second.block_k)
        return -(-a.candidates(k) // block) * block

    x0 = torch.empty((strip, elements), dtype=dtype, device=loss.device)
    weights = torch.empty(strip * padded(max(range(banks), key=a.candidates)), dtype=dtype, device=loss.device)
    statistics = floats(4 * (padded(max(range(banks), key=a.candidates)) // first.block_n) * strip)
    row_scale, inverse_norm, match, pull, factors = (floats(n * strip) for n in (1, 1, 1, 1, 2))
    bank_sum = floats(strip, elements) if banks > 1 and gradient is not None else None
    error_rows, entropy_rows, bank_weights = floats(queries), floats(banks, queries), floats(banks)
    norms = [floats(2, a.candidates(k)) if a.normalize else None for k in range(banks)]
    for bank, norm in zip(a.banks, norms, strict=True):
        if norm is not None:
            bank_norm_kernel[(triton.cdiv(bank.shape[0], row_block),)](
                bank, norm, bank.shape[0], elements, BLOCK_M=row_block, BLOCK_N=512, num_warps=4
            )

    for row_begin in range(0, queries, strip):
        rows = min(strip, queries - row_begin)
        prologue_kernel[(triton.cdiv(rows, row_block),)](
            a.prediction, a.noisy, a.target, a.c_skip, a.c_out, x0, row_scale, inverse_norm, error_rows,
            row_begin, rows, elements, NORMALIZE=a.normalize, SCALED=half, BLOCK_M=row_block, BLOCK_N=512,
            num_warps=4,
        )  # fmt: skip
        for k, bank in enumerate(a.banks):
            tiles_m, tiles_n = triton.cdiv(rows, first.block_m), padded(k) // first.block_n
            scaled_exp_kernel[(min(programs, tiles_m * tiles_n),)](
                x0, row_scale, bank, norms[k], a.positives[k], a.temperature_tensor, a.query_groups, a.bank_groups[k],
                weights, match, statistics, a.temperature, row_begin, rows, strip, elements, a.candidates(k),
                padded(k), NORMALIZE=a.normalize, EVEN=elements % first.block_k == 0, DOT_DTYPE=dot_dtype, STEP=step,
                OFFSET=offset, BLOCK_M=first.block_m, BLOCK_N=first.block_n, BLOCK_K=first.block_k, GROUP=group,
                num_warps=first.num_warps, num_stages=first.num_stages,
            )  # fmt: skip
            glue_kernel[(triton.cdiv(rows, line_block),)](
                weights, match, statistics, norms[k], inverse_norm, entropy_rows[k], factors, pull, bank_weights[k:],
                a.c_skip, a.c_out, a.positives[k], a.temperature_tensor, a.contrastive_weights, a.temperature,
                a.bank_weights[k], row_begin, rows, strip, queries, a.candidates(k), padded(k), tiles_n, FIRST=k == 0,
                NORMALIZE=a.normalize, GRADIENT=gradient is not None, BLOCK_M=line_block, TILE=first.block_n, CHUNK=64,
                num_warps=4,
            )  # fmt: skip
            if gradient is None:
                continue
            tiles = triton.cdiv(rows, second.block_m) * triton.cdiv(elements, second.block_n)
            gradient_kernel[(min(programs, tiles),)](
                weights, bank, a.positives[k], factors, pull, bank_sum, a.prediction, a.noisy, a.target, a.c_skip,
                a.c_out, a.mse_weights, gradient, row_begin, rows, strip, queries, elements, a.candidates(k),
                padded(k), FIRST=k == 0, LAST=k == banks - 1, NORMALIZE=a.normalize,
                EVEN=elements % second.block_n == 0, DOT_DTYPE=dot_dtype, BLOCK_M=second.block_m,
                BLOCK_N=second.block_n, BLOCK_K=second.block_k, GROUP=group, num_warps=second.num_warps,
                num_stages=second.num_stages,
            )  # fmt: skip
    loss_kernel[(1,)](
        loss, mse, contrastive, error_rows, entropy_rows, bank_weights, a.mse_weights, a.contrastive_weights, queries,
        banks, BLOCK=1024, num_warps=8,
    )  # fmt: skip
