// Tiles of bfloat16 by the dot product of pairs that AVX512-BF16 has (VDPBF16PS). The instruction set is
// asked for function by function, so that nothing that is included gets compiled for it.

#include "bf16_products.h"

#ifdef CI2V_X86

#include <immintrin.h>

#include <cstring>

namespace contrastive_i2v::cpu {

namespace {

constexpr int kMaxRows = 6;  // x 4 vectors of sums, the 4 of columns and a pair fill the 32 registers
constexpr int kLanes = 16;

// The product of rows [row, row + M) and W vectors of columns, the last of them maybe short.
template <int M, int W>
__attribute__((target("avx512f,avx512bf16"))) void multiply_rows(const Parts& left, const Tile::Right& right,
                                                                 const Block& block, int64_t row) {
  const c10::BFloat16* a = left.data + row * left.stride;
  float* out = block.out + row * block.stride;
  __m512 sums[M][W];
  for (int i = 0; i < M; ++i) {
    for (int v = 0; v < W; ++v) {
      sums[i][v] = _mm512_setzero_ps();
      __builtin_prefetch(out + i * block.stride + v * kLanes, 1);
    }
  }
  for (int64_t k = 0; k < block.depth; k += 2) {
    __m512bh columns[W];
    for (int v = 0; v < W; ++v) {
      columns[v] = (__m512bh)_mm512_load_si512(right.data + k * Tile::kColumns + 2 * v * kLanes);
    }
    for (int i = 0; i < M; ++i) {
      int32_t bits;
      std::memcpy(&bits, a + i * left.stride + k, sizeof(bits));
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(bits);
      for (int v = 0; v < W; ++v) sums[i][v] = _mm512_dpbf16_ps(sums[i][v], pair, columns[v]);
    }
  }
  const int64_t rest = block.columns - (W - 1) * kLanes;
  for (int i = 0; i < M; ++i) {
    for (int v = 0; v < W; ++v) {
      const auto mask = static_cast<__mmask16>(v + 1 < W ? 0xffff : (1 << rest) - 1);
      float* to = out + i * block.stride + v * kLanes;
      if (block.add) sums[i][v] = _mm512_add_ps(sums[i][v], _mm512_maskz_loadu_ps(mask, to));
      _mm512_mask_storeu_ps(to, mask, sums[i][v]);
    }
  }
}

// The rows from `row` on, in `blocks` blocks of at most M and of about the same height.
template <int M, int W>
void multiply_blocks(const Parts& left, const Tile::Right& right, const Block& block, int64_t row,
                     int64_t blocks) {
  for (; blocks > 0 && block.rows - row > (M - 1) * blocks; --blocks, row += M) {
    multiply_rows<M, W>(left, right, block, row);
  }
  if constexpr (M > 1) multiply_blocks<M - 1, W>(left, right, block, row, blocks);
}

template <int W>
void multiply(const Parts& left, const Tile::Right& right, const Block& block) {
  if constexpr (W > 1) {
    if (block.columns <= (W - 1) * kLanes) return multiply<W - 1>(left, right, block);
  }
  multiply_blocks<kMaxRows, W>(left, right, block, 0, (block.rows + kMaxRows - 1) / kMaxRows);
}

}  // namespace

const TileProduct avx512_bf16 = {1, false, multiply<Tile::kColumns / kLanes>, [] {}};

bool has_avx512_bf16() { return __builtin_cpu_supports("avx512bf16"); }

// AMD's do twice float32's arithmetic by it. Intel's that have AMX do half, and are in float32 where AMX is
// off.
bool gains_from_avx512_bf16() { return has_avx512_bf16() && __builtin_cpu_is("amd"); }

}  // namespace contrastive_i2v::cpu

#else

namespace contrastive_i2v::cpu {

const TileProduct avx512_bf16 = {};

bool has_avx512_bf16() { return false; }
bool gains_from_avx512_bf16() { return false; }

}  // namespace contrastive_i2v::cpu

#endif
