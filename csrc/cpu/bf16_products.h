// Products of float rows with a bfloat16 bank by the processor's own bfloat16 matrix instructions (AMX). A
// float a is split into two bfloat16 parts, a = high + low + r with |r| <= 2^-16 |a|, both parts are
// multiplied with the bank, and everything is summed in float32: x0 and the coefficients of the softmax keep
// 16 bits, where rounding them to bfloat16 would keep 8. That is twice the matrix instructions, each about 16
// times as fast as float32's.
#pragma once

#include <c10/util/BFloat16.h>

#include "kernels.h"

namespace contrastive_i2v::cpu {

// The one shape that is ever multiplied, ragged edges filled up with zeros: so there is one kernel to make
// and one to check.
struct Tile {
  static constexpr int64_t kRows = 32;     // of floats, which are 64 rows of parts
  static constexpr int64_t kColumns = 64;  // what AMX holds at once beside 2 x 16 rows
  static constexpr int64_t kDepth = 512;
  static constexpr int64_t kStride = kDepth + 32;  // rows a power of two apart would share sets of the cache

  struct alignas(64) Left {  // row i: the high part of float row i, row kRows + i: its low part
    c10::BFloat16 data[2 * kRows * kStride];
  };
  struct alignas(64) Right {  // [kDepth / 2][kColumns][2]: pairs that neighbour in depth, as AMX takes them
    c10::BFloat16 data[kDepth * kColumns];
  };
  struct alignas(64) Sums {
    float data[2 * kRows * kColumns];
  };
};

struct TileProduct {
  void (*multiply)(const Tile::Left& left, const Tile::Right& right, Tile::Sums& sums);  // sums += left right
  void (*release)();  // after a thread's last product
};

// Who multiplies tiles of `queries` rows with a bank [rows, elements]; null: nobody, or filling the tiles up
// would cost more than they gain. CI2V_CPU_BF16=auto|off|emulated is read at each call: `auto` is the
// hardware once it has shown, in this process, that it computes what float32 does; `emulated` is plain C++ on
// the same tiles.
const TileProduct* find_tile_product(int64_t queries, int64_t rows, int64_t elements);

// out[i * out_stride + j] = <x0_i, z_j>
void tiled_logits(const TileProduct& product, const Rows& x0, const Matrix& bank, float* out,
                  int64_t out_stride);

// out_i = sum_j coefficients_ij z_j, or += with `add`; out [coefficients.count, D]
void tiled_weighted_sums(const TileProduct& product, const Rows& coefficients, const Matrix& bank, bool add,
                         float* out);

}  // namespace contrastive_i2v::cpu
