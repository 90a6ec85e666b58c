// Products of float rows with a bfloat16 bank by the processor's own bfloat16 instructions, summed in
// float32.
//
// AMX: a float a is split into two bfloat16 parts, a = high + low + r with |r| <= 2^-16 |a|, and both are
// multiplied with the bank: x0 and the coefficients of the softmax keep 16 bits, where rounding them to
// bfloat16 would keep 8. That is twice the matrix instructions, each about 16 times as fast as float32's.
//
// AVX512-BF16: its dot product of pairs is at best twice as fast as float32's arithmetic, so a float is one
// part, rounded once. What is written without this op rounds these operands too, and every logit and every
// result besides.
#pragma once

#include <c10/util/BFloat16.h>

#include "kernels.h"

namespace contrastive_i2v::cpu {

// What is multiplied at a time, at most. AMX takes nothing but whole tiles, ragged edges filled up with
// zeros: so there is one kernel to make and one to check.
struct Tile {
  static constexpr int64_t kRows = 64;     // of parts
  static constexpr int64_t kColumns = 64;  // what AMX holds at once beside 2 x 16 rows
  static constexpr int64_t kDepth = 512;
  static constexpr int64_t kStride = kDepth + 32;  // rows a power of two apart would share sets of the cache

  struct alignas(64) Left {  // row i: the high part of float row i; its low part comes kRows / 2 rows later
    c10::BFloat16 data[kRows * kStride];
  };
  struct alignas(64) Right {  // [kDepth / 2][kColumns][2]: pairs that neighbour in depth
    c10::BFloat16 data[kDepth * kColumns];
  };
};

// Rows of parts, an even number of elements apart. One element of 0 follows a row of odd length.
struct Parts {
  const c10::BFloat16* data;
  int64_t stride;
};

// Where a tile's product goes, and what of the tile is there.
struct Block {
  float* out;
  int64_t stride;
  int64_t rows, columns, depth;
  bool add;  // to what `out` holds
};

struct TileProduct {
  int64_t parts;  // of a float
  bool whole;     // it reads whole tiles, whatever of them is there
  void (*multiply)(const Parts& left, const Tile::Right& right, const Block& block);
  void (*release)();  // after a thread's last product

  int64_t rows() const { return Tile::kRows / parts; }  // of floats in a tile
};

// AVX512-BF16 (bf16_avx512.cpp): whether this processor has it, and whether that is faster than float32.
extern const TileProduct avx512_bf16;
bool has_avx512_bf16();
bool gains_from_avx512_bf16();

// Who multiplies tiles of `queries` rows with a bank [rows, elements]; null: nobody, or filling the tiles up
// would cost more than they gain. CI2V_CPU_BF16=auto|off|avx512|emulated|emulated-avx512 is read at each
// call: `auto` is the instructions that gain on this processor, `avx512` is AVX512-BF16 wherever there is
// any, `emulated` and `emulated-avx512` are plain C++ on the tiles of AMX and of AVX512-BF16. Each has to
// show first, in this process, that it computes what float32 does.
const TileProduct* find_tile_product(int64_t queries, int64_t rows, int64_t elements);

// The same for a whole problem, but only who takes one part of a float and only if everything is bfloat16.
const TileProduct* find_rounding_product(const Problem& problem);

// out[i * out_stride + j] = <x0_i, z_j>
void tiled_logits(const TileProduct& product, const Rows& x0, const Matrix& bank, float* out,
                  int64_t out_stride);

// The same from `count` rows that are rounded already.
void tiled_logits(const TileProduct& product, const Parts& x0, int64_t count, const Matrix& bank, float* out,
                  int64_t out_stride);

// out_i = sum_j coefficients_ij z_j, or += with `add`; out [coefficients.count, D]
void tiled_weighted_sums(const TileProduct& product, const Rows& coefficients, const Matrix& bank, bool add,
                         float* out);

}  // namespace contrastive_i2v::cpu
