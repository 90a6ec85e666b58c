"""Small regime, 1 of 3: a block of logits over a slice of D, with the slice's squared errors and norms.

16-bit latents are never rounded again: <x0, z> = c_skip <x_t, z> + c_out <F, z>, and products of 16-bit numbers are
exact in float32. That costs a third matrix product, which at these sizes is a few microseconds.
"""

import triton
import triton.language as tl
from contrastive_i2v.kernels.rows import load_coefficients, product, row_pointers, wide


@triton.jit
def partial_logits_kernel(
    p_prediction,
    p_noisy,
    p_target,
    p_c_skip,
    p_c_out,
    p_bank_0,
    p_bank_1,
    p_partial,  # [slices, queries, columns]
    p_row_sums,  # [2, slices, queries]: |F - target|^2, |x0|^2
    p_bank_sums,  # [slices, columns]: |z|^2
    queries,
    elements,
    candidates_0,
    candidates_1,
    columns,  # of both banks, each padded to whole blocks
    blocks_0,  # of bank 0
    slice_elements,
    BANKS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    TWO_PRODUCTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    slice_index = tl.program_id(2)
    begin = slice_index * slice_elements
    end = begin + slice_elements  # past the last element in the last slice
    b_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    b_in = b_row < queries
    b_row = tl.minimum(b_row, queries - 1)
    b_skip, b_out = load_coefficients(p_c_skip, p_c_out, b_row, NORMALIZE)
    p_f = row_pointers(p_prediction, b_row, elements)
    p_x = row_pointers(p_noisy, b_row, elements)

    block = tl.program_id(1)
    if block == 0:
        p_y = row_pointers(p_target, b_row, elements)
        b_error = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        b_square = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        for k in range(begin, end, BLOCK_K):
            b_k = k + tl.arange(0, BLOCK_K)[None, :]
            b_f = wide(tl.load(p_f + b_k, b_k < elements, 0.0))
            b_y = wide(tl.load(p_y + b_k, b_k < elements, 0.0))
            b_error += (b_f - b_y) * (b_f - b_y)
            if NORMALIZE:
                b_x = wide(tl.load(p_x + b_k, b_k < elements, 0.0))
                b_x0 = b_skip[:, None] * b_x + b_out[:, None] * b_f
                b_square += b_x0 * b_x0
        p_sums = p_row_sums + slice_index * queries + b_row
        tl.store(p_sums, tl.sum(b_error, 1), b_in)
        if NORMALIZE:
            tl.store(p_sums + tl.num_programs(2) * queries, tl.sum(b_square, 1), b_in)

    if BANKS > 0:
        p_bank, candidates, first = p_bank_0, candidates_0, 0
        if BANKS == 2:
            is_second = block >= blocks_0
            p_bank = tl.where(is_second, p_bank_1, p_bank_0)
            candidates = tl.where(is_second, candidates_1, candidates_0)
            first = tl.where(is_second, blocks_0, 0)
        b_candidate = tl.minimum((block - first) * BLOCK_N + tl.arange(0, BLOCK_N), candidates - 1)
        p_z = row_pointers(p_bank, b_candidate, elements)
        b_noisy_dot = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        b_dot = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(begin, end, BLOCK_K):
            b_k = k + tl.arange(0, BLOCK_K)[None, :]
            b_f = tl.load(p_f + b_k, b_k < elements, 0.0)
            b_x = tl.load(p_x + b_k, b_k < elements, 0.0)
            b_z = tl.load(p_z + b_k, b_k < elements, 0.0)
            if TWO_PRODUCTS:
                b_noisy_dot = product(b_x, tl.trans(b_z), b_noisy_dot)
                b_dot = product(b_f, tl.trans(b_z), b_dot)
            else:
                b_x0 = b_skip[:, None] * wide(b_x) + b_out[:, None] * wide(b_f)
                b_dot = product(b_x0, tl.trans(wide(b_z)), b_dot)
        if TWO_PRODUCTS:
            b_dot = b_skip[:, None] * b_noisy_dot + b_out[:, None] * b_dot
        b_column = block * BLOCK_N + tl.arange(0, BLOCK_N)
        p_row = p_partial + (slice_index.to(tl.int64) * queries + b_row)[:, None] * columns
        tl.store(p_row + b_column[None, :], b_dot, b_in[:, None])

        if NORMALIZE:  # noqa: SIM102
            if tl.program_id(0) == 0:
                b_square = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
                for k in range(begin, end, BLOCK_K):
                    b_k = k + tl.arange(0, BLOCK_K)[None, :]
                    b_z = wide(tl.load(p_z + b_k, b_k < elements, 0.0))
                    b_square += b_z * b_z
                tl.store(p_bank_sums + slice_index * columns + b_column, tl.sum(b_square, 1))
