"""The small regime: three kernels, each a few microseconds, at most two banks of one dtype. Its launcher, and the
last of the three kernels: a block of the gradient; one more program sums the loss."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from contrastive_i2v.kernels.arguments import Arguments
from contrastive_i2v.kernels.configs import small_configs
from contrastive_i2v.kernels.gradient import bank_gradient, latent_gradient, weighted_sum
from contrastive_i2v.kernels.partial_logits import partial_logits_kernel
from contrastive_i2v.kernels.rows import rounded, write_loss
from contrastive_i2v.kernels.softmax import softmax_kernel
from torch import Tensor


@triton.jit
def small_gradient_kernel(
    p_weights,
    p_bank_0,
    p_bank_1,
    p_positives_0,
    p_positives_1,
    p_factors,  # [BANKS, 2, queries]
    p_pull,
    p_prediction,
    p_noisy,
    p_target,
    p_c_skip,
    p_c_out,
    p_mse_weights,
    p_contrastive_weights,
    p_gradient,  # None: only the loss
    p_loss,
    p_mse,
    p_contrastive,
    p_error_rows,
    p_entropy_rows,
    p_bank_weights,
    queries,
    elements,
    candidates_0,
    candidates_1,
    columns,
    columns_0,
    BANKS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    EVEN: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    if tl.program_id(0) == tl.num_programs(0) - 1:
        write_loss(
            p_loss, p_mse, p_contrastive, p_error_rows, p_entropy_rows, p_bank_weights, p_mse_weights,
            p_contrastive_weights, queries, BANKS, 256,
        )  # fmt: skip
    elif p_gradient is not None:
        tiles_n = tl.cdiv(elements, BLOCK_N)
        first_row = (tl.program_id(0) // tiles_n) * BLOCK_M
        b_row = first_row + tl.arange(0, BLOCK_M)
        b_column = (tl.program_id(0) % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
        b_in = (b_row < queries)[:, None] & (b_column < elements)[None, :]
        b_row = tl.minimum(b_row, queries - 1)
        b_gradient = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if BANKS > 0:
            b_sum = weighted_sum(
                p_weights, p_bank_0, first_row, b_row, b_column, columns, columns_0, elements, candidates_0, EVEN,
                DOT_DTYPE, BLOCK_K,
            )  # fmt: skip
            b_gradient += bank_gradient(
                b_sum, p_bank_0, p_factors, queries, p_positives_0, b_row, b_row, b_column, elements, candidates_0
            )
        if BANKS == 2:
            b_sum = weighted_sum(
                p_weights + columns_0, p_bank_1, first_row, b_row, b_column, columns, columns - columns_0, elements,
                candidates_1, EVEN, DOT_DTYPE, BLOCK_K,
            )  # fmt: skip
            b_gradient += bank_gradient(
                b_sum, p_bank_1, p_factors + 2 * queries, queries, p_positives_1, b_row, b_row, b_column, elements,
                candidates_1,
            )  # fmt: skip
        b_gradient += latent_gradient(
            p_prediction, p_noisy, p_target, p_c_skip, p_c_out, p_mse_weights, p_pull, b_row, b_row, b_column,
            queries, elements, NORMALIZE and BANKS > 0,
        )  # fmt: skip
        p_out = p_gradient + b_row.to(tl.int64)[:, None] * elements + b_column[None, :]
        tl.store(p_out, rounded(b_gradient, p_gradient.dtype.element_ty), b_in)


def run_small(a: Arguments, loss: Tensor, mse: Tensor, contrastive: Tensor, gradient: Tensor | None) -> None:
    """Fills the results. `a.banks` are at most two, of one dtype."""
    banks, queries, elements = len(a.banks), a.queries, a.elements
    candidates = [a.candidates(k) for k in range(banks)]
    dot_dtype = a.exact_dot_dtype()
    partial, softmax, grad = small_configs(queries, tuple(candidates), elements, dot_dtype, a.arch)
    blocks = [triton.cdiv(n, partial.block_n) for n in candidates]
    columns, columns_0 = sum(blocks) * partial.block_n, blocks[0] * partial.block_n if banks else 0
    slice_elements = partial.slice_elements
    slices = triton.cdiv(elements, slice_elements)

    # One allocation for everything in float32.
    sizes = (
        slices * queries * columns, 2 * slices * queries, slices * columns, queries, banks * queries,
        2 * banks * queries, queries, banks,
    )  # fmt: skip
    floats = loss.new_empty(sum(-(-size // 4) * 4 for size in sizes))
    parts = floats.split([-(-size // 4) * 4 for size in sizes])
    p_partial, p_row_sums, p_bank_sums, p_error_rows, p_entropy_rows, p_factors, p_pull, p_bank_weights = parts
    weights = torch.empty((queries, columns), dtype=dot_dtype, device=loss.device)
    bank_0, bank_1 = (*a.banks, None, None)[:2] if banks != 1 else (a.banks[0], a.banks[0])
    candidates_0, candidates_1 = (*candidates, 1, 1)[:2]
    positives_0, positives_1 = (*a.positives, None, None)[:2]
    groups_0, groups_1 = (*a.bank_groups, None, None)[:2]
    weight_0, weight_1 = (*a.bank_weights, 0.0, 0.0)[:2]

    partial_logits_kernel[(triton.cdiv(queries, partial.block_m), max(sum(blocks), 1), slices)](
        a.prediction, a.noisy, a.target, a.c_skip, a.c_out, bank_0, bank_1, p_partial, p_row_sums, p_bank_sums,
        queries, elements, candidates_0, candidates_1, columns, blocks[0] if banks else 0, slice_elements,
        BANKS=banks, NORMALIZE=a.normalize, TWO_PRODUCTS=dot_dtype != torch.float32,
        BLOCK_M=partial.block_m, BLOCK_N=partial.block_n, BLOCK_K=partial.block_k,
        num_warps=partial.num_warps, num_stages=partial.num_stages,
    )  # fmt: skip
    softmax_kernel[(triton.cdiv(queries, softmax.block_m),)](
        p_partial, p_row_sums, p_bank_sums, weights, p_error_rows, p_entropy_rows, p_factors, p_pull, p_bank_weights,
        a.c_skip, a.c_out, positives_0, positives_1, a.temperature_tensor, a.contrastive_weights, a.query_groups,
        groups_0, groups_1, a.temperature, weight_0, weight_1, queries, elements, candidates_0, candidates_1, columns,
        columns_0, slices, BANKS=banks, NORMALIZE=a.normalize, SHIFT=14 if dot_dtype == torch.float16 else 0,
        BLOCK_M=softmax.block_m, BLOCK_N=softmax.block_n, num_warps=softmax.num_warps, maxnreg=softmax.max_registers,
    )  # fmt: skip
    tiles = 0 if gradient is None else triton.cdiv(queries, grad.block_m) * triton.cdiv(elements, grad.block_n)
    small_gradient_kernel[(tiles + 1,)](
        weights, bank_0, bank_1, positives_0, positives_1, p_factors, p_pull, a.prediction, a.noisy, a.target,
        a.c_skip, a.c_out, a.mse_weights, a.contrastive_weights, gradient, loss, mse, contrastive, p_error_rows,
        p_entropy_rows, p_bank_weights, queries, elements, candidates_0, candidates_1, columns, columns_0,
        BANKS=banks, NORMALIZE=a.normalize, EVEN=elements % grad.block_n == 0, DOT_DTYPE=a.triton_dtype(dot_dtype),
        BLOCK_M=grad.block_m, BLOCK_N=grad.block_n, BLOCK_K=grad.block_k,
        num_warps=grad.num_warps, num_stages=grad.num_stages,
    )  # fmt: skip
