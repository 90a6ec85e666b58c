"""What every kernel of the loss does with one row: coefficients, positive, temperature, cross entropy.

Logits are kept in base 2, `l * log2(e)`, with what a power of two can take from them taken exactly. The positive
is never among the exponentials: with `others = logsumexp_{j != positive} l_j` and `d = others - l_positive`

    CE = log(1 + exp(d)),   p_j = sigmoid(d) * e_j / sum(e),   1 - p_positive = sigmoid(d)

so a saturated row keeps its small loss and gradient, and neither can turn negative.
"""

import os

import triton
import triton.language as tl

# The interpreter has no 16-bit arithmetic: it multiplies bfloat16's bits as integers, and cuts where it should round.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def row_pointers(p_matrix, b_row, elements):
    """Where the rows begin, [rows, 1]. A row's offset passes 2^31 where N D does, so it is an int64."""
    return p_matrix + b_row.to(tl.int64)[:, None] * elements


@triton.jit
def wide(b_value):
    """In float32."""
    if INTERPRETED and b_value.dtype == tl.bfloat16:  # the interpreter's own conversion is slow
        b_wide = (b_value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        b_wide = b_value.to(tl.float32)
    return b_wide


@triton.jit
def operand(b_value, DTYPE: tl.constexpr):
    """Of a product in DTYPE, which holds every value of b_value's own dtype."""
    if DTYPE == tl.float32:  # noqa: SIM300
        b_value = wide(b_value)
    return b_value


@triton.jit
def product(b_left, b_right, b_sum):
    """b_sum + b_left @ b_right in float32: float32 is never cut to TF32."""
    if INTERPRETED:
        b_sum += tl.dot(wide(b_left), wide(b_right), input_precision="ieee")
    else:
        b_sum = tl.dot(b_left, b_right, b_sum, input_precision="ieee")
    return b_sum


@triton.jit
def rounded(b_value, DTYPE: tl.constexpr):
    """A float32 block in DTYPE, rounded to nearest even."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300
        b_bits = b_value.to(tl.uint32, bitcast=True)
        b_bits = tl.where(b_value == b_value, b_bits + 0x7FFF + ((b_bits >> 16) & 1), 0x7FC00000)
        b_rounded = (b_bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        b_rounded = b_value.to(DTYPE)
    return b_rounded


@triton.jit
def halves(b_tile):
    """The left and the right half of the columns."""
    b_tile = tl.reshape(b_tile, (b_tile.shape[0], 2, b_tile.shape[1] // 2))
    return tl.split(tl.permute(b_tile, (0, 2, 1)))


@triton.jit
def quarters(b_tile):
    """Four blocks of columns: an epilogue that goes through one at a time needs few registers beside the tile."""
    b_left, b_right = halves(b_tile)
    b_0, b_1 = halves(b_left)
    b_2, b_3 = halves(b_right)
    return b_0, b_1, b_2, b_3


@triton.jit
def load_coefficients(p_c_skip, p_c_out, b_row, NORMALIZE: tl.constexpr):
    """c_skip and c_out. The cosine does not see a row's scale, so there they are divided by the larger one: abar -> 0
    cannot overflow the squared norm of x0."""
    b_skip = tl.load(p_c_skip + b_row).to(tl.float32)
    b_out = tl.load(p_c_out + b_row).to(tl.float32)
    if NORMALIZE:
        b_gain = tl.maximum(tl.abs(b_skip), tl.abs(b_out))
        b_gain = tl.where(b_gain == 0, 1.0, b_gain)
        b_skip = tl.math.div_rn(b_skip, b_gain)
        b_out = tl.math.div_rn(b_out, b_gain)
    return b_skip, b_out


@triton.jit
def reciprocal(b_value):
    """1 / b_value, a float64 within float32's range, to 2^-46: a float64 division is a call that spills registers."""
    b_guess = tl.math.div_rn(1.0, b_value.to(tl.float32)).to(tl.float64)
    return b_guess * (2.0 - b_value * b_guess)


@triton.jit
def load_weights(p_weights, b_row):
    """A row's weight in float64; 1 without weights."""
    b_weight = tl.full(b_row.shape, 1.0, tl.float64)
    if p_weights is not None:
        b_weight = tl.load(p_weights + b_row).to(tl.float64)
    return b_weight


@triton.jit
def load_positive(p_positives, b_row, candidates):
    """(row of the bank, or -1; whether it may be one). Without positives query i matches row i."""
    b_positive = b_row.to(tl.int64)
    if p_positives is not None:
        b_positive = tl.load(p_positives + b_row)
    b_valid = (b_positive >= -1) & (b_positive < candidates)
    return tl.where(b_valid, b_positive, -1).to(tl.int32), b_valid


@triton.jit
def load_temperature(p_temperature, temperature):
    """NaN where it is not a finite number > 0: the host never reads it."""
    b_temperature = tl.full((), temperature, tl.float32)
    if p_temperature is not None:
        b_temperature = tl.load(p_temperature).to(tl.float32)
    return tl.where((b_temperature > 0) & (b_temperature < float("inf")), b_temperature, float("nan"))


@triton.jit
def inverse_norm(b_square):
    """1 / |row|, and 1 for a zero row: its products are 0 whatever they are scaled with."""
    return tl.math.div_rn(1.0, tl.math.sqrt_rn(tl.where(b_square == 0, 1.0, b_square)))


@triton.jit
def may_be_negative(b_column, b_positive, b_row, p_query_groups, p_bank_groups, candidates):
    """[rows, columns]: which candidates stand against the positive."""
    b_other = (b_column < candidates)[None, :] & (b_column[None, :] != b_positive[:, None])
    if p_bank_groups is not None:
        b_query_group = tl.load(p_query_groups + b_row)
        b_bank_group = tl.load(p_bank_groups + tl.minimum(b_column, candidates - 1))
        b_other &= b_query_group[:, None] != b_bank_group[None, :]
    return b_other


@triton.jit
def log1p_of_exp2(b_minus):
    """log(1 + 2^-x) for x >= 0, by the series of atanh: a hardware log2 near 1 has no relative accuracy."""
    b_small = tl.exp2(-b_minus)
    b_s = tl.math.div_rn(b_small, 2.0 + b_small)  # <= 1/3
    b_q = b_s * b_s
    b_series = 1.0 / 13 + b_q * (1.0 / 15)
    b_series = 1.0 / 11 + b_q * b_series
    b_series = 1.0 / 9 + b_q * b_series
    b_series = 1.0 / 7 + b_q * b_series
    b_series = 1.0 / 5 + b_q * b_series
    b_series = 1.0 / 3 + b_q * b_series
    return 2 * b_s * (1.0 + b_q * b_series)


@triton.jit
def cross_entropy(b_sum, b_stored, b_reference, b_similarity, b_scale, b_positive, b_valid, b_poison):
    """(CE, sigmoid(d) / b_stored) from `b_sum = sum_{j != positive} 2^(l_j - reference)`, the same sum of the weights
    as they are stored, and the positive's similarity, whose logit is `similarity * b_scale` in base 2. `b_poison` is
    0, or NaN where any logit of the row was not finite."""
    b_empty = b_sum == 0  # nothing stands against the positive
    b_safe_sum = tl.where(b_empty, 1.0, b_sum)
    b_d = tl.log2(b_safe_sum) - (b_similarity * b_scale - b_reference)
    b_size = tl.abs(b_d)
    b_entropy = tl.where(b_d > 0, b_d * LN_2, 0.0) + log1p_of_exp2(b_size)
    b_tail = tl.exp2(-b_size)  # in (0, 1]: sigmoid is 1 / (1 + tail), or tail / (1 + tail)
    b_share = tl.math.div_rn(tl.where(b_d > 0, 1.0, b_tail), 1.0 + b_tail)
    b_share = tl.math.div_rn(b_share, tl.where(b_stored == 0, 1.0, b_stored))
    b_counts = (b_positive >= 0) & (b_empty == 0)
    # where() would drop a NaN: a row that does not count still has to show one
    b_entropy = tl.where(b_counts, b_entropy, 0.0) + b_poison
    return tl.where(b_valid, b_entropy, float("nan")), tl.where(b_counts, b_share, 0.0)


@triton.jit
def write_loss(
    p_loss,  # []
    p_mse,  # []
    p_contrastive,  # [BANKS]
    p_error_rows,  # [queries], mean_d (F - target)^2
    p_entropy_rows,  # [BANKS, queries]
    p_bank_weights,  # [BANKS]
    p_mse_weights,
    p_contrastive_weights,
    queries,
    banks,
    BLOCK: tl.constexpr,
):
    """The sums over the rows, in float64 and always in the same order, by one program."""
    b_sum = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, queries, BLOCK):
        b_row = begin + tl.arange(0, BLOCK)
        b_in = b_row < queries
        b_safe = tl.minimum(b_row, queries - 1)
        b_error = tl.load(p_error_rows + b_safe).to(tl.float64) * load_weights(p_mse_weights, b_safe)
        b_sum += tl.where(b_in, b_error, 0.0)
    b_loss = tl.sum(b_sum, 0) / queries
    tl.store(p_mse, b_loss.to(tl.float32))
    for k in range(0, banks):
        b_sum = tl.zeros([BLOCK], tl.float64)
        for begin in range(0, queries, BLOCK):
            b_row = begin + tl.arange(0, BLOCK)
            b_in = b_row < queries
            b_safe = tl.minimum(b_row, queries - 1)
            b_entropy = tl.load(p_entropy_rows + k * queries + b_safe).to(tl.float64)
            b_sum += tl.where(b_in, b_entropy * load_weights(p_contrastive_weights, b_safe), 0.0)
        b_mean = tl.sum(b_sum, 0) / queries
        tl.store(p_contrastive + k, b_mean.to(tl.float32))
        b_loss += tl.load(p_bank_weights + k) * b_mean
    tl.store(p_loss, b_loss.to(tl.float32))
