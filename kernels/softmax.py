"""Small regime, 2 of 3: a block of rows adds the slices up in order, takes its softmax over each bank and writes
the candidates' weights 2^(l - max) and what the gradient needs of a row."""

import triton
import triton.language as tl
from contrastive_i2v.kernels.rows import (
    LOG2_E,
    cross_entropy,
    inverse_norm,
    load_coefficients,
    load_positive,
    load_temperature,
    load_weights,
    may_be_negative,
    reciprocal,
    rounded,
    wide,
)


@triton.jit
def _similarity(
    p_partial, p_bank_sums, b_row, b_column, b_row_scale, queries, columns, slices, NORMALIZE: tl.constexpr
):
    """<x0, z> or the cosine, and |z|, or 1."""
    b_dot = tl.zeros([b_row.shape[0], b_column.shape[0]], tl.float32)
    b_norm = tl.full([b_column.shape[0]], 1.0, tl.float32)
    b_square = tl.zeros([b_column.shape[0]], tl.float32)
    p_row = p_partial + b_row.to(tl.int64)[:, None] * columns + b_column[None, :]
    for _ in range(0, slices):
        b_dot += tl.load(p_row)
        p_row += queries.to(tl.int64) * columns
    if NORMALIZE:
        p_square = p_bank_sums + b_column
        for _ in range(0, slices):
            b_square += tl.load(p_square)
            p_square += columns
        b_norm = tl.where(b_square == 0, 1.0, tl.math.sqrt_rn(b_square))
        b_dot *= b_row_scale[:, None] * tl.math.div_rn(1.0, b_norm)[None, :]
    return b_dot, b_norm


@triton.jit
def _softmax_of_bank(
    p_partial,
    p_bank_sums,
    p_weights,  # [queries, columns], written
    p_entropy_rows,  # [queries], written
    p_factors,  # [2, queries], written
    p_positives,
    p_query_groups,
    p_bank_groups,
    b_row,
    b_in,
    b_row_scale,
    b_temperature,
    bank_weight,
    p_c_skip,
    p_c_out,
    p_contrastive_weights,
    queries,
    columns,
    slices,
    first,  # column
    candidates,
    padded,
    NORMALIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b_scale = LOG2_E / b_temperature
    b_positive, b_valid = load_positive(p_positives, b_row, candidates)
    b_max = tl.full([b_row.shape[0]], float("-inf"), tl.float32)
    b_poison = tl.zeros([b_row.shape[0]], tl.float32)
    b_match = tl.zeros([b_row.shape[0]], tl.float32)  # the positive's similarity
    for begin in range(0, padded, BLOCK_N):
        b_column = begin + tl.arange(0, BLOCK_N)
        b_dot, b_norm = _similarity(
            p_partial, p_bank_sums, b_row, first + b_column, b_row_scale, queries, columns, slices, NORMALIZE
        )
        b_poison += tl.sum(tl.where((b_column < candidates)[None, :], b_dot * b_scale * 0, 0.0), 1)
        b_match += tl.sum(tl.where(b_column[None, :] == b_positive[:, None], b_dot, 0.0), 1)
        b_other = may_be_negative(b_column, b_positive, b_row, p_query_groups, p_bank_groups, candidates)
        b_logit = b_dot * b_scale - tl.log2(b_norm)[None, :]
        b_max = tl.maximum(b_max, tl.max(tl.where(b_other, b_logit, float("-inf")), 1))
    b_reference = tl.where(b_max == float("-inf"), 0.0, b_max - SHIFT)

    # The loss has the exact sum. The gradient has that of the weights as they are stored, so that a mean which the
    # bank's rows share cancels from it.
    b_sum = tl.zeros([b_row.shape[0]], tl.float32)
    b_stored = tl.zeros([b_row.shape[0]], tl.float32)
    b_pull = tl.zeros([b_row.shape[0]], tl.float32)
    for begin in range(0, padded, BLOCK_N):
        b_column = begin + tl.arange(0, BLOCK_N)
        b_dot, b_norm = _similarity(
            p_partial, p_bank_sums, b_row, first + b_column, b_row_scale, queries, columns, slices, NORMALIZE
        )
        b_other = may_be_negative(b_column, b_positive, b_row, p_query_groups, p_bank_groups, candidates)
        b_power = (b_dot * b_scale - b_reference[:, None]) - tl.log2(b_norm)[None, :]
        b_weight = tl.exp2(tl.where(b_other, b_power, float("-inf")))
        b_sum += tl.sum(b_weight * b_norm[None, :], 1)
        b_weight = rounded(b_weight, p_weights.dtype.element_ty)
        tl.store(p_weights + b_row.to(tl.int64)[:, None] * columns + first + b_column[None, :], b_weight, b_in[:, None])
        b_share = wide(b_weight) * b_norm[None, :]
        b_stored += tl.sum(b_share, 1)
        if NORMALIZE:
            b_pull += tl.sum(tl.where(b_other, b_share * (b_dot - b_match[:, None]), 0.0), 1)

    b_entropy, b_share = cross_entropy(b_sum, b_stored, b_reference, b_match, b_scale, b_positive, b_valid, b_poison)
    tl.store(p_entropy_rows + b_row, b_entropy, b_in)
    _, b_out = load_coefficients(p_c_skip, p_c_out, b_row, NORMALIZE)
    b_base = load_weights(p_contrastive_weights, b_row) * b_out * reciprocal(b_temperature.to(tl.float64) * queries)
    if NORMALIZE:
        b_base *= b_row_scale
    b_factor = (b_base * bank_weight * b_share).to(tl.float32)
    b_positive_scale = tl.full([b_row.shape[0]], 1.0, tl.float32)
    if NORMALIZE:
        b_square = tl.zeros([b_row.shape[0]], tl.float32)
        p_square = p_bank_sums + first + tl.maximum(b_positive, 0)
        for _ in range(0, slices):
            b_square += tl.load(p_square)
            p_square += columns
        b_positive_scale = inverse_norm(b_square)
    tl.store(p_factors + b_row, b_factor, b_in)
    tl.store(p_factors + queries + b_row, b_stored * b_positive_scale, b_in)
    return b_factor * b_pull


@triton.jit(do_not_specialize=["queries"])
def softmax_kernel(
    p_partial,
    p_row_sums,
    p_bank_sums,
    p_weights,
    p_error_rows,  # [queries]
    p_entropy_rows,  # [BANKS, queries]
    p_factors,  # [BANKS, 2, queries]: of the bank's weighted sum, of the positive within it
    p_pull,  # [queries]: of x0
    p_bank_weights,  # [BANKS]
    p_c_skip,
    p_c_out,
    p_positives_0,
    p_positives_1,
    p_temperature,
    p_contrastive_weights,
    p_query_groups,
    p_bank_groups_0,
    p_bank_groups_1,
    temperature,
    bank_weight_0,
    bank_weight_1,
    queries,
    elements,
    candidates_0,
    candidates_1,
    columns,
    columns_0,
    slices,
    BANKS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    b_in = b_row < queries
    b_row = tl.minimum(b_row, queries - 1)
    b_error = tl.zeros([BLOCK_M], tl.float32)
    b_square = tl.zeros([BLOCK_M], tl.float32)
    p_sum = p_row_sums + b_row
    for _ in range(0, slices):
        b_error += tl.load(p_sum)
        if NORMALIZE:
            b_square += tl.load(p_sum + slices * queries)
        p_sum += queries
    tl.store(p_error_rows + b_row, b_error / elements, b_in)
    if BANKS > 0:
        b_temperature = load_temperature(p_temperature, temperature)
        b_row_scale = tl.where(b_square == 0, 0.0, inverse_norm(b_square))
        tl.store(p_bank_weights, tl.full((), bank_weight_0, tl.float32))
        b_pull = _softmax_of_bank(
            p_partial, p_bank_sums, p_weights, p_entropy_rows, p_factors, p_positives_0, p_query_groups,
            p_bank_groups_0, b_row, b_in, b_row_scale, b_temperature, bank_weight_0, p_c_skip, p_c_out,
            p_contrastive_weights, queries, columns, slices, 0, candidates_0, columns_0, NORMALIZE, SHIFT, BLOCK_N,
        )  # fmt: skip
        if BANKS == 2:
            tl.store(p_bank_weights + 1, tl.full((), bank_weight_1, tl.float32))
            b_pull += _softmax_of_bank(
                p_partial, p_bank_sums, p_weights, p_entropy_rows + queries, p_factors + 2 * queries, p_positives_1,
                p_query_groups, p_bank_groups_1, b_row, b_in, b_row_scale, b_temperature, bank_weight_1, p_c_skip,
                p_c_out, p_contrastive_weights, queries, columns, slices, columns_0, candidates_1, columns - columns_0,
                NORMALIZE, SHIFT, BLOCK_N,
            )  # fmt: skip
        if NORMALIZE:
            tl.store(p_pull + b_row, b_pull * b_row_scale, b_in)
