"""Large regime, 3 of 4: a strip's rows collect what the tiles of logits said: reference, sums, cross entropy, and the
factors of the gradient. Tiles whose reference is not the row's are brought to it, in place. Also the loss."""

import triton
import triton.language as tl
from contrastive_i2v.kernels.rows import (
    LOG2_E,
    cross_entropy,
    load_coefficients,
    load_positive,
    load_temperature,
    load_weights,
    reciprocal,
    rounded,
    row_pointers,
    wide,
    write_loss,
)


@triton.jit(do_not_specialize=["row_begin", "rows", "queries", "candidates", "tiles"])
def glue_kernel(
    p_weights,  # [strip, padded]
    p_match,  # [strip]
    p_statistics,  # [3 or 4, tiles, strip]
    p_bank_norm,
    p_inverse_norm,  # [strip]
    p_entropy_rows,  # [queries], of this bank
    p_factors,  # [2, strip]
    p_pull,  # [strip]: summed over the banks
    p_bank_weight,  # [], of this bank
    p_c_skip,
    p_c_out,
    p_positives,
    p_temperature,
    p_contrastive_weights,
    temperature,
    bank_weight,
    row_begin,
    rows,
    strip,
    queries,
    candidates,
    padded,
    tiles,
    FIRST: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    b_strip_row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    b_in = b_strip_row < rows
    b_strip_row = tl.minimum(b_strip_row, rows - 1)
    b_row = row_begin + b_strip_row
    b_reference = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for begin in range(0, tiles, CHUNK):
        b_tile = begin + tl.arange(0, CHUNK)[:, None]
        p_statistic = p_statistics + b_tile * strip + b_strip_row[None, :]
        b_references = tl.load(p_statistic, b_tile < tiles, float("-inf"))
        b_reference = tl.maximum(b_reference, tl.max(b_references, 0))
    b_reference = tl.where(b_reference == float("-inf"), 0.0, b_reference)  # nothing stands against the positive
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_stored = tl.zeros([BLOCK_M], tl.float32)
    b_similar = tl.zeros([BLOCK_M], tl.float32)
    for begin in range(0, tiles, CHUNK):
        b_tile = begin + tl.arange(0, CHUNK)[:, None]
        b_some = b_tile < tiles
        p_statistic = p_statistics + b_tile * strip + b_strip_row[None, :]
        b_ratio = tl.exp2(tl.load(p_statistic, b_some, float("-inf")) - b_reference[None, :])
        b_sum += tl.sum(b_ratio * tl.load(p_statistic + tiles * strip, b_some, 0.0), 0)
        b_stored += tl.sum(b_ratio * tl.load(p_statistic + 2 * tiles * strip, b_some, 0.0), 0)
        if NORMALIZE:
            b_similar += tl.sum(b_ratio * tl.load(p_statistic + 3 * tiles * strip, b_some, 0.0), 0)

    b_temperature = load_temperature(p_temperature, temperature)
    b_positive, b_valid = load_positive(p_positives, b_row, candidates)
    b_match = tl.load(p_match + b_strip_row, b_positive >= 0, 0.0)
    # The tiles' poison is in their sums: a row without a positive must show it too.
    b_entropy, b_share = cross_entropy(
        b_sum, b_stored, b_reference, b_match, LOG2_E / b_temperature, b_positive, b_valid, b_sum * 0
    )
    tl.store(p_entropy_rows + b_row, b_entropy, b_in)
    tl.store(p_bank_weight, tl.full((), bank_weight, tl.float32))
    if GRADIENT:
        _, b_out = load_coefficients(p_c_skip, p_c_out, b_row, NORMALIZE)
        b_base = load_weights(p_contrastive_weights, b_row) * b_out * reciprocal(b_temperature.to(tl.float64) * queries)
        b_positive_scale = tl.full([BLOCK_M], 1.0, tl.float32)
        if NORMALIZE:
            b_inverse_norm = tl.load(p_inverse_norm + b_strip_row)
            b_base *= b_inverse_norm
            b_positive_scale = tl.load(p_bank_norm + candidates + tl.maximum(b_positive, 0))
        b_factor = (b_base * bank_weight * b_share).to(tl.float32)
        tl.store(p_factors + b_strip_row, b_factor, b_in)
        tl.store(p_factors + strip + b_strip_row, b_stored * b_positive_scale, b_in)
        if NORMALIZE:
            b_pull = b_factor * (b_similar - b_stored * b_match) * b_inverse_norm
            if not FIRST:
                b_pull += tl.load(p_pull + b_strip_row)
            tl.store(p_pull + b_strip_row, b_pull, b_in)

        # A tile without candidates (r = -inf) has zeros already. The last row, repeated, must not be scaled twice.
        for begin in range(0, tiles, CHUNK):
            b_tile = begin + tl.arange(0, CHUNK)[:, None]
            p_statistic = p_statistics + b_tile * strip + b_strip_row[None, :]
            b_shifts = tl.load(p_statistic, b_tile < tiles, float("-inf")) - b_reference[None, :]
            b_any = (b_shifts < 0) & (b_shifts > float("-inf"))
            if tl.max(tl.max(b_any.to(tl.int32), 1), 0) > 0:
                for tile in range(begin, tl.minimum(begin + CHUNK, tiles)):
                    b_shift = tl.load(p_statistics + tile * strip + b_strip_row) - b_reference
                    b_moves = b_in & (b_shift < 0) & (b_shift > float("-inf"))
                    p_w = row_pointers(p_weights, b_strip_row, padded) + tile * TILE + tl.arange(0, TILE)[None, :]
                    b_w = wide(tl.load(p_w, b_moves[:, None], 0.0)) * tl.exp2(b_shift)[:, None]
                    tl.store(p_w, rounded(b_w, p_weights.dtype.element_ty), b_moves[:, None])


@triton.jit(do_not_specialize=["queries", "banks"])
def loss_kernel(
    p_loss,
    p_mse,
    p_contrastive,
    p_error_rows,
    p_entropy_rows,
    p_bank_weights,
    p_mse_weights,
    p_contrastive_weights,
    queries,
    banks,
    BLOCK: tl.constexpr,
):
    write_loss(
        p_loss, p_mse, p_contrastive, p_error_rows, p_entropy_rows, p_bank_weights, p_mse_weights,
        p_contrastive_weights, queries, banks, BLOCK,
    )  # fmt: skip
