"""Large regime, 1 of 4: x0 of a strip of queries in the dtype of the matrix products, with the row sums that are made
on the way: the squared error and, for cosines, |x0|. Also the norms of a bank's rows."""

import triton
import triton.language as tl
from contrastive_i2v.kernels.rows import inverse_norm, load_coefficients, rounded, row_pointers, wide


@triton.jit
def power_of_two_above(b_skip, b_out):
    """g = 2^n with |c_skip|, |c_out| < g: (c_skip x + c_out F) / (2 g) stays within float16 whatever x and F are. By
    the exponent bits, so that dividing by it is exact."""
    b_bits = tl.maximum(tl.abs(b_skip), tl.abs(b_out)).to(tl.int32, bitcast=True)
    b_exponent = tl.minimum(tl.maximum((b_bits >> 23) + 1, 2), 252)
    return (b_exponent << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["row_begin", "rows", "queries"])
def prologue_kernel(
    p_prediction,
    p_noisy,
    p_target,
    p_c_skip,
    p_c_out,
    p_x0,  # [strip, elements]
    p_row_scale,  # [strip]: what turns <x0 as stored, z> into <x0, z>, or into <x0, z> / |x0|
    p_inverse_norm,  # [strip]: 1 / |x0|, 0 for a zero row; cosines only
    p_error_rows,  # [queries], mean_d (F - target)^2
    row_begin,
    rows,
    elements,
    NORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b_strip_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    b_in = b_strip_row < rows
    b_strip_row = tl.minimum(b_strip_row, rows - 1)
    b_row = row_begin + b_strip_row
    b_skip, b_out = load_coefficients(p_c_skip, p_c_out, b_row, NORMALIZE)
    b_gain = tl.full([BLOCK_M], 1.0, tl.float32)
    if SCALED:
        b_gain = 2 * power_of_two_above(b_skip, b_out)
    b_skip_scaled, b_out_scaled = tl.math.div_rn(b_skip, b_gain), tl.math.div_rn(b_out, b_gain)
    b_error = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_square = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in range(0, elements, BLOCK_N):
        b_column = begin + tl.arange(0, BLOCK_N)[None, :]
        b_inside = b_column < elements
        b_offset = row_pointers(0, b_row, elements) + b_column
        b_f = wide(tl.load(p_prediction + b_offset, b_inside, 0.0))
        b_x = wide(tl.load(p_noisy + b_offset, b_inside, 0.0))
        b_y = wide(tl.load(p_target + b_offset, b_inside, 0.0))
        b_error += (b_f - b_y) * (b_f - b_y)
        b_x0 = b_skip_scaled[:, None] * b_x + b_out_scaled[:, None] * b_f
        b_square += b_x0 * b_x0
        p_to = row_pointers(p_x0, b_strip_row, elements) + b_column
        tl.store(p_to, rounded(b_x0, p_x0.dtype.element_ty), b_inside & b_in[:, None])
    tl.store(p_error_rows + b_row, tl.sum(b_error, 1) / elements, b_in)
    b_scale = b_gain
    if NORMALIZE:
        b_sum = tl.sum(b_square, 1)
        b_scale = inverse_norm(b_sum)
        tl.store(p_inverse_norm + b_strip_row, tl.where(b_sum == 0, 0.0, tl.math.div_rn(b_scale, b_gain)), b_in)
    tl.store(p_row_scale + b_strip_row, b_scale, b_in)


@triton.jit(do_not_specialize=["candidates"])
def bank_norm_kernel(
    p_bank,
    p_norm,  # [2, candidates]: |z|, 1 / |z|; 1 for a zero row, whose products are 0 whatever the scale
    candidates,
    elements,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    b_in = b_row < candidates
    b_row = tl.minimum(b_row, candidates - 1)
    b_square = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in range(0, elements, BLOCK_N):
        b_column = begin + tl.arange(0, BLOCK_N)[None, :]
        b_z = wide(tl.load(row_pointers(p_bank, b_row, elements) + b_column, b_column < elements, 0.0))
        b_square += b_z * b_z
    b_sum = tl.sum(b_square, 1)
    b_norm = tl.math.sqrt_rn(tl.where(b_sum == 0, 1.0, b_sum))
    tl.store(p_norm + b_row, b_norm, b_in)
    tl.store(p_norm + candidates + b_row, tl.math.div_rn(1.0, b_norm), b_in)
