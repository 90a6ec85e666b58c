"""Large regime, 2 of 4: the logits of a strip of queries against one bank, which never leave the registers.

    W_ij = 2^(l_ij - r) in 16 bits, r a multiple of STEP near the largest l of the row within the tile

With r so coarse nearly every tile of a row agrees on it and W needs no second pass; where they differ, a power of two
turns one into the other exactly (`glue_kernel`). What W cannot hold is below 2^-62 of the row's largest in bfloat16
and float32, and below 2^-31 in float16.
"""

import triton
import triton.language as tl
from contrastive_i2v.kernels.gradient import tile_of
from contrastive_i2v.kernels.rows import (
    LOG2_E,
    load_positive,
    load_temperature,
    may_be_negative,
    operand,
    product,
    quarters,
    rounded,
    wide,
)


@triton.jit
def _similarity(b_dot, first, b_row_scale, p_bank_norm, candidates):
    """Columns from `first` on: <x0, z> or the cosine."""
    b_dot *= b_row_scale[:, None]
    if p_bank_norm is not None:
        b_column = tl.minimum(first + tl.arange(0, b_dot.shape[1]), candidates - 1)
        b_dot *= tl.load(p_bank_norm + candidates + b_column)[None, :]
    return b_dot


@triton.jit
def _leave_others(b_dot, first, b_row, b_positive, p_query_groups, p_bank_groups, candidates):
    """-inf for what does not stand against the positive; and the positive's similarity, or 0."""
    b_column = first + tl.arange(0, b_dot.shape[1])
    b_match = tl.sum(tl.where(b_column[None, :] == b_positive[:, None], b_dot, 0.0), 1)
    b_other = may_be_negative(b_column, b_positive, b_row, p_query_groups, p_bank_groups, candidates)
    return tl.where(b_other, b_dot, float("-inf")), b_match


@triton.jit
def _write_weights(b_dot, first, begin, p_w, b_in, b_scale, b_reference, p_bank_norm, candidates):
    """Stores the weights of the tile's columns from `begin` on; sums of exact weights, of stored ones, of stored ones
    times similarities, each in units of the softmax's terms."""
    b_column = begin + tl.arange(0, b_dot.shape[1])
    b_weight = tl.exp2(b_dot * b_scale - b_reference[:, None])
    b_sum = tl.sum(b_weight, 1)
    b_similar = b_reference
    if p_bank_norm is not None:
        p_norm = p_bank_norm + tl.minimum(first + b_column, candidates - 1)
        b_weight *= tl.load(p_norm + candidates)[None, :]
    b_stored = rounded(b_weight, p_w.dtype.element_ty)
    tl.store(p_w + b_column[None, :], b_stored, b_in[:, None])
    b_share = wide(b_stored)
    if p_bank_norm is not None:
        b_share *= tl.load(p_norm)[None, :]
        b_similar = tl.sum(tl.where(b_share > 0, b_share * b_dot, 0.0), 1)
    return b_sum, tl.sum(b_share, 1), b_similar


@triton.jit(do_not_specialize=["row_begin", "rows", "candidates"])
def scaled_exp_kernel(
    p_x0,  # [strip, elements]
    p_row_scale,  # [strip]
    p_bank,  # [candidates, elements]
    p_bank_norm,  # [2, candidates]: |z|, 1 / |z|; None: no cosines
    p_positives,
    p_temperature,
    p_query_groups,
    p_bank_groups,
    p_weights,  # [strip, padded], written
    p_match,  # [strip]: the positive's similarity, written where there is one
    p_statistics,  # [STATISTICS, tiles_n, strip]: r, sum of 2^(l - r), the same of the stored W, sum of W similarity
    temperature,
    row_begin,
    rows,
    strip,
    elements,
    candidates,
    padded,  # columns of p_weights: whole tiles, zeros past the last candidate
    NORMALIZE: tl.constexpr,
    EVEN: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    STEP: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), padded // BLOCK_N
    b_scale = LOG2_E / load_temperature(p_temperature, temperature)
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = tile_of(tile, tiles_m, tiles_n, GROUP)
        b_strip_row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        b_in = b_strip_row < rows
        b_strip_row = tl.minimum(b_strip_row, rows - 1)
        b_column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        # A 64-bit base a tile and 32-bit offsets within it: half the registers of 64-bit pointers.
        b_k = tl.arange(0, BLOCK_K)[None, :]
        p_a = p_x0 + (tile_m * BLOCK_M).to(tl.int64) * elements
        b_a_offset = (b_strip_row - tile_m * BLOCK_M)[:, None] * elements + b_k
        p_b = p_bank + (tile_n * BLOCK_N).to(tl.int64) * elements
        b_b_offset = (tl.minimum(b_column, candidates - 1) - tile_n * BLOCK_N)[:, None] * elements + b_k
        b_dot = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for begin in range(0, elements, BLOCK_K):
            if EVEN:
                b_a = tl.load(p_a + b_a_offset)
                b_b = tl.load(p_b + b_b_offset)
            else:
                b_a = tl.load(p_a + b_a_offset, begin + b_k < elements, 0.0)
                b_b = tl.load(p_b + b_b_offset, begin + b_k < elements, 0.0)
            b_dot = product(b_a, tl.trans(operand(b_b, DOT_DTYPE)), b_dot)
            p_a += BLOCK_K
            p_b += BLOCK_K

        b_row = row_begin + b_strip_row
        b_positive, _ = load_positive(p_positives, b_row, candidates)
        b_row_scale = tl.load(p_row_scale + b_strip_row)
        b_0, b_1, b_2, b_3 = quarters(b_dot)
        first = tile_n * BLOCK_N
        WIDTH: tl.constexpr = BLOCK_N // 4
        b_0 = _similarity(b_0, first, b_row_scale, p_bank_norm, candidates)
        b_1 = _similarity(b_1, first + 1 * WIDTH, b_row_scale, p_bank_norm, candidates)
        b_2 = _similarity(b_2, first + 2 * WIDTH, b_row_scale, p_bank_norm, candidates)
        b_3 = _similarity(b_3, first + 3 * WIDTH, b_row_scale, p_bank_norm, candidates)
        # A candidate that the softmax ignores must still show its NaN or infinity.
        b_poison = (tl.sum(b_0, 1) + tl.sum(b_1, 1)) + (tl.sum(b_2, 1) + tl.sum(b_3, 1))
        b_poison *= b_scale * 0

        # Few tiles hold a positive or the end of the bank.
        b_here = (b_positive >= first) & (b_positive < first + BLOCK_N)
        is_last = first + BLOCK_N > candidates
        if is_last | (tl.max(b_here.to(tl.int32), 0) > 0) | (p_bank_groups is not None):
            b_0, b_match_0 = _leave_others(b_0, first, b_row, b_positive, p_query_groups, p_bank_groups, candidates)
            b_1, b_match_1 = _leave_others(
                b_1, first + 1 * WIDTH, b_row, b_positive, p_query_groups, p_bank_groups, candidates
            )
            b_2, b_match_2 = _leave_others(
                b_2, first + 2 * WIDTH, b_row, b_positive, p_query_groups, p_bank_groups, candidates
            )
            b_3, b_match_3 = _leave_others(
                b_3, first + 3 * WIDTH, b_row, b_positive, p_query_groups, p_bank_groups, candidates
            )
            tl.store(p_match + b_strip_row, (b_match_0 + b_match_1) + (b_match_2 + b_match_3), b_here & b_in)
        b_max = tl.maximum(tl.maximum(tl.max(b_0, 1), tl.max(b_1, 1)), tl.maximum(tl.max(b_2, 1), tl.max(b_3, 1)))
        b_max *= b_scale
        if NORMALIZE:  # a weight is divided by |z|: no less than the largest, near it as norms of latents are alike
            b_column = tl.minimum(b_column, candidates - 1)
            b_max += tl.log2(tl.max(tl.load(p_bank_norm + candidates + b_column), 0))
        b_reference = STEP * tl.floor((b_max + OFFSET) * (1.0 / STEP))
        b_finite = tl.where(b_max == float("-inf"), 0.0, b_reference)
        p_tile = p_weights + (tile_m * BLOCK_M).to(tl.int64) * padded + first
        p_w = p_tile + (b_strip_row - tile_m * BLOCK_M)[:, None] * padded
        b_sum_0, b_stored_0, b_similar_0 = _write_weights(
            b_0, first, 0, p_w, b_in, b_scale, b_finite, p_bank_norm, candidates
        )
        b_sum_1, b_stored_1, b_similar_1 = _write_weights(
            b_1, first, WIDTH, p_w, b_in, b_scale, b_finite, p_bank_norm, candidates
        )
        b_sum_2, b_stored_2, b_similar_2 = _write_weights(
            b_2, first, 2 * WIDTH, p_w, b_in, b_scale, b_finite, p_bank_norm, candidates
        )
        b_sum_3, b_stored_3, b_similar_3 = _write_weights(
            b_3, first, 3 * WIDTH, p_w, b_in, b_scale, b_finite, p_bank_norm, candidates
        )
        b_sum = (b_sum_0 + b_sum_1) + (b_sum_2 + b_sum_3)
        p_statistic = p_statistics + tile_n * strip + b_strip_row
        tl.store(p_statistic, b_reference, b_in)
        tl.store(p_statistic + tiles_n * strip, b_sum + b_poison, b_in)
        tl.store(p_statistic + 2 * tiles_n * strip, (b_stored_0 + b_stored_1) + (b_stored_2 + b_stored_3), b_in)
        if NORMALIZE:
            tl.store(p_statistic + 3 * tiles_n * strip, (b_similar_0 + b_similar_1) + (b_similar_2 + b_similar_3), b_in)
