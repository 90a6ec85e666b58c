"""The gradient's pieces and, for the large regime, the second matrix product with them in its epilogue.

    dloss/dF_i = 2 w_i (F_i - target_i) / (B D) + sum_k [ factor_ki (sum_j W_kij z_kj - total_ki z_k,positive(i)) ]
                 - pull_i x0_i                                               # the projection, for cosines only

W are the stored weights and `total` their own sum, so what all rows of a bank share cancels before it is scaled.
"""

import triton
import triton.language as tl
from contrastive_i2v.kernels.rows import (
    load_coefficients,
    load_positive,
    load_weights,
    operand,
    product,
    quarters,
    reciprocal,
    rounded,
    row_pointers,
    wide,
)


@triton.jit
def weighted_sum(
    p_weights,  # the first column of this bank
    p_bank,  # [candidates, elements]
    first_row,
    b_weight_row,  # from first_row on
    b_column,  # elements
    weight_stride,
    padded,  # columns of p_weights, a multiple of BLOCK_K
    elements,
    candidates,
    EVEN: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """[rows, columns] of weights @ bank, in float32."""
    # 64-bit bases and 32-bit offsets within a tile: half the registers of 64-bit pointers.
    p_w = p_weights + first_row.to(tl.int64) * weight_stride
    b_k = tl.arange(0, BLOCK_K)
    b_w_offset = (b_weight_row - first_row)[:, None] * weight_stride + b_k[None, :]
    b_in = (b_column < elements)[None, :]
    b_sum = tl.zeros([b_weight_row.shape[0], b_column.shape[0]], tl.float32)
    for begin in range(0, padded, BLOCK_K):
        b_w = tl.load(p_w + begin + b_w_offset)
        # Rows past the end have weight 0 and repeat the last one.
        first = tl.minimum(begin, candidates - 1)
        p_z = p_bank + first.to(tl.int64) * elements
        b_z_offset = (tl.minimum(begin + b_k, candidates - 1) - first)[:, None] * elements + b_column[None, :]
        b_z = tl.load(p_z + b_z_offset) if EVEN else tl.load(p_z + b_z_offset, b_in, 0.0)
        b_sum = product(operand(b_w, DOT_DTYPE), operand(b_z, DOT_DTYPE), b_sum)
    return b_sum


@triton.jit
def bank_gradient(
    b_sum, p_bank, p_factors, factor_stride, p_positives, b_factor_row, b_row, b_column, elements, candidates
):
    """[rows, columns] of one bank's gradient, from its weighted sum."""
    b_factor = tl.load(p_factors + b_factor_row)
    b_total = tl.load(p_factors + factor_stride + b_factor_row)
    b_positive, _ = load_positive(p_positives, b_row, candidates)
    p_z = row_pointers(p_bank, tl.maximum(b_positive, 0), elements) + b_column[None, :]
    b_z = wide(tl.load(p_z, (b_column < elements)[None, :], 0.0))
    return b_factor[:, None] * (b_sum - b_total[:, None] * b_z)


@triton.jit
def latent_gradient(
    p_prediction,
    p_noisy,
    p_target,
    p_c_skip,
    p_c_out,
    p_mse_weights,
    p_pull,
    b_pull_row,
    b_row,
    b_column,
    queries,
    elements,
    NORMALIZE: tl.constexpr,
):
    """[rows, columns] of the diffusion loss's gradient and, for cosines, of the projection."""
    b_in = (b_column < elements)[None, :]
    b_offset = row_pointers(0, b_row, elements) + b_column[None, :]
    b_f = wide(tl.load(p_prediction + b_offset, b_in, 0.0))
    b_y = wide(tl.load(p_target + b_offset, b_in, 0.0))
    # One rounding to float32: an error in a row's factor does not average out over D.
    b_inverse = reciprocal(tl.full((), queries, tl.float64) * elements)
    b_factor = (2 * load_weights(p_mse_weights, b_row) * b_inverse).to(tl.float32)
    b_gradient = b_factor[:, None] * (b_f - b_y)
    if NORMALIZE:
        b_skip, b_out = load_coefficients(p_c_skip, p_c_out, b_row, NORMALIZE)
        b_x = wide(tl.load(p_noisy + b_offset, b_in, 0.0))
        b_gradient -= tl.load(p_pull + b_pull_row)[:, None] * (b_skip[:, None] * b_x + b_out[:, None] * b_f)
    return b_gradient


@triton.jit
def tile_of(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Tile number -> (row of tiles, column of tiles), GROUP rows at a time: what runs at once shares operands in L2."""
    group = tile // (GROUP * tiles_n)
    first = group * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    within = tile - group * GROUP * tiles_n
    return first + within % height, within // height


@triton.jit
def _write_gradient(
    b_sum,
    first,
    b_row_in,
    b_strip_row,
    b_row,
    p_bank,
    p_positives,
    p_factors,
    p_pull,
    p_sum,
    p_prediction,
    p_noisy,
    p_target,
    p_c_skip,
    p_c_out,
    p_mse_weights,
    p_gradient,
    strip,
    queries,
    elements,
    candidates,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Columns from `first` on: this bank's gradient, added to the others' or, after the last bank, finished."""
    b_column = first + tl.arange(0, b_sum.shape[1])
    b_in = b_row_in[:, None] & (b_column < elements)[None, :]
    b_gradient = bank_gradient(
        b_sum, p_bank, p_factors, strip, p_positives, b_strip_row, b_row, b_column, elements, candidates
    )
    b_sum_offset = row_pointers(0, b_strip_row, elements) + b_column[None, :]
    if not FIRST:
        b_gradient += tl.load(p_sum + b_sum_offset, b_in, 0.0)
    if LAST:
        b_gradient += latent_gradient(
            p_prediction, p_noisy, p_target, p_c_skip, p_c_out, p_mse_weights, p_pull, b_strip_row, b_row, b_column,
            queries, elements, NORMALIZE,
        )  # fmt: skip
        p_out = row_pointers(p_gradient, b_row, elements) + b_column[None, :]
        tl.store(p_out, rounded(b_gradient, p_gradient.dtype.element_ty), b_in)
    else:
        tl.store(p_sum + b_sum_offset, b_gradient, b_in)


@triton.jit(do_not_specialize=["row_begin", "rows", "queries", "candidates"])
def gradient_kernel(
    p_weights,  # [strip, padded]
    p_bank,
    p_positives,
    p_factors,  # [2, strip]
    p_pull,  # [strip], or None
    p_sum,  # [strip, elements] float32: the gradient of the banks so far, or None
    p_prediction,
    p_noisy,
    p_target,
    p_c_skip,
    p_c_out,
    p_mse_weights,
    p_gradient,  # [queries, elements], of the last bank
    row_begin,
    rows,
    strip,
    queries,
    elements,
    candidates,
    padded,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    NORMALIZE: tl.constexpr,
    EVEN: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One bank's gradient for a strip of queries, tiles dealt out to as many programs as there are multiprocessors."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(elements, BLOCK_N)
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = tile_of(tile, tiles_m, tiles_n, GROUP)
        b_strip_row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        b_column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        b_in = b_strip_row < rows
        b_strip_row = tl.minimum(b_strip_row, rows - 1)
        b_row = row_begin + b_strip_row
        b_sum = weighted_sum(
            p_weights, p_bank, tile_m * BLOCK_M, b_strip_row, b_column, padded, padded, elements, candidates, EVEN,
            DOT_DTYPE, BLOCK_K,
        )  # fmt: skip
        b_0, b_1, b_2, b_3 = quarters(b_sum)
        first = tile_n * BLOCK_N
        WIDTH: tl.constexpr = BLOCK_N // 4
        _write_gradient(
            b_0, first, b_in, b_strip_row, b_row, p_bank, p_positives, p_factors, p_pull, p_sum,
            p_prediction, p_noisy, p_target, p_c_skip, p_c_out, p_mse_weights, p_gradient, strip, queries, elements,
            candidates, FIRST, LAST, NORMALIZE,
        )  # fmt: skip
        _write_gradient(
            b_1, first + 1 * WIDTH, b_in, b_strip_row, b_row, p_bank, p_positives, p_factors, p_pull, p_sum,
            p_prediction, p_noisy, p_target, p_c_skip, p_c_out, p_mse_weights, p_gradient, strip, queries, elements,
            candidates, FIRST, LAST, NORMALIZE,
        )  # fmt: skip
        _write_gradient(
            b_2, first + 2 * WIDTH, b_in, b_strip_row, b_row, p_bank, p_positives, p_factors, p_pull, p_sum,
            p_prediction, p_noisy, p_target, p_c_skip, p_c_out, p_mse_weights, p_gradient, strip, queries, elements,
            candidates, FIRST, LAST, NORMALIZE,
        )  # fmt: skip
        _write_gradient(
            b_3, first + 3 * WIDTH, b_in, b_strip_row, b_row, p_bank, p_positives, p_factors, p_pull, p_sum,
            p_prediction, p_noisy, p_target, p_c_skip, p_c_out, p_mse_weights, p_gradient, strip, queries, elements,
            candidates, FIRST, LAST, NORMALIZE,
        )  # fmt: skip
