// See bf16_products.h. A slice of the depth at a time: the left rows are split into tiles once; then each
// thread takes panels of columns, packs its panel of the bank in its own cache and runs down all the left
// tiles. The slices and tiles are fixed and summed in order, so no bit depends on the number of threads. The
// memory is a slice of the left side (2.3 MB for 1,024 rows) and 82 KB a thread.

#include "bf16_products.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>

namespace contrastive_i2v::cpu {

namespace {

// A part of a matrix.
struct Range {
  int64_t begin, count;
};

int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

Range tile_range(int64_t index, int64_t tile, int64_t size) {
  return {index * tile, std::min(tile, size - index * tile)};
}

// The high part is cut off, not rounded, so that no float overflows to infinity; what is left of it is exact
// and is rounded to nearest. A NaN or an infinity leaves a NaN in one of the parts.
void split(const float* from, int64_t count, c10::BFloat16* high, c10::BFloat16* low) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t cut = std::bit_cast<uint32_t>(from[i]) & 0xffff0000u;
    const uint32_t rest = std::bit_cast<uint32_t>(from[i] - std::bit_cast<float>(cut));
    high[i].x = static_cast<uint16_t>(cut >> 16);
    low[i].x = static_cast<uint16_t>((rest + 0x7fffu + (rest >> 16 & 1u)) >> 16);
  }
}

void fill_left(const Rows& a, Range rows, Range depth, Tile::Left& tile) {
  constexpr int64_t stride = Tile::kStride;
  for (int64_t i = 0; i < Tile::kRows; ++i) {
    c10::BFloat16 *high = tile.data + i * stride, *low = high + Tile::kRows * stride;
    const int64_t count = i < rows.count ? depth.count : 0;
    if (count) split(a.data + (rows.begin + i) * a.stride + depth.begin, count, high, low);
    std::fill(high + count, high + Tile::kDepth, c10::BFloat16(0));
    std::fill(low + count, low + Tile::kDepth, c10::BFloat16(0));
  }
}

// The right side of x0 bank^T: depth runs along a row of the bank, columns are its rows. A transpose of
// pairs, a cache line of each row at a time.
struct PackTransposed {
  const c10::BFloat16* bank;
  int64_t stride;

  void operator()(Range depth, Range columns, Tile::Right& tile) const {
    constexpr int64_t kLines = 32;  // pairs
    const int64_t pairs = depth.count / 2;
    const c10::BFloat16* from = bank + columns.begin * stride + depth.begin;
    for (int64_t begin = 0; begin < pairs; begin += kLines) {
      const int64_t end = std::min(begin + kLines, pairs);
      for (int64_t n = 0; n < columns.count; ++n) {
        for (int64_t p = begin; p < end; ++p) {
          std::memcpy(tile.data + 2 * (p * Tile::kColumns + n), from + n * stride + 2 * p,
                      2 * sizeof(c10::BFloat16));
        }
      }
    }
    for (int64_t n = 0; n < columns.count && depth.count % 2; ++n) {
      tile.data[2 * (pairs * Tile::kColumns + n)] = from[n * stride + 2 * pairs];
    }
  }
};

// The right side of coefficients bank: depth runs down the rows of the bank.
struct PackRows {
  const c10::BFloat16* bank;
  int64_t stride;

  void operator()(Range depth, Range columns, Tile::Right& tile) const {
    const c10::BFloat16* __restrict even = bank + depth.begin * stride + columns.begin;
    c10::BFloat16* __restrict to = tile.data;
    for (int64_t k = 0; k < depth.count; k += 2, even += 2 * stride, to += 2 * Tile::kColumns) {
      const c10::BFloat16* __restrict odd = even + stride;
      if (k + 1 < depth.count) {
        for (int64_t n = 0; n < columns.count; ++n) {
          to[2 * n] = even[n];
          to[2 * n + 1] = odd[n];
        }
      } else {
        for (int64_t n = 0; n < columns.count; ++n) to[2 * n] = even[n];
      }
    }
  }
};

void store(const Tile::Sums& sums, Range rows, Range columns, bool add, float* out, int64_t stride) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const float *high = sums.data + i * Tile::kColumns, *low = high + Tile::kRows * Tile::kColumns;
    float* to = out + (rows.begin + i) * stride + columns.begin;
    for (int64_t n = 0; n < columns.count; ++n) to[n] = (add ? to[n] : 0.0f) + (high[n] + low[n]);
  }
}

// out [a.count, columns] (+)= a [a.count, depth] b [depth, columns]
template <typename Pack>
void multiply(const TileProduct& product, const Rows& a, int64_t depth, int64_t columns, const Pack& pack,
              bool add, float* out, int64_t out_stride) {
  const int64_t row_tiles = tiles(a.count, Tile::kRows);
  const auto left = std::make_unique_for_overwrite<Tile::Left[]>(row_tiles);
  const auto row_range = [&](int64_t t) { return tile_range(t, Tile::kRows, a.count); };
  for (int64_t s = 0; s < tiles(depth, Tile::kDepth); ++s) {
    const Range slice = tile_range(s, Tile::kDepth, depth);
    at::parallel_for(0, row_tiles, 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) fill_left(a, row_range(t), slice, left[t]);
    });
    at::parallel_for(0, tiles(columns, Tile::kColumns), 1, [&](int64_t first, int64_t last) {
      const auto right = std::make_unique_for_overwrite<Tile::Right>();
      const auto sums = std::make_unique_for_overwrite<Tile::Sums>();
      for (int64_t p = first; p < last; ++p) {
        const Range panel = tile_range(p, Tile::kColumns, columns);
        if (slice.count < Tile::kDepth || panel.count < Tile::kColumns) *right = {};
        pack(slice, panel, *right);
        for (int64_t t = 0; t < row_tiles; ++t) {
          *sums = {};
          product.multiply(left[t], *right, *sums);
          store(*sums, row_range(t), panel, add || s > 0, out, out_stride);
        }
      }
      product.release();
    });
  }
}

}  // namespace

void tiled_logits(const TileProduct& product, const Rows& x0, const Matrix& bank, float* out,
                  int64_t out_stride) {
  const PackTransposed pack{static_cast<const c10::BFloat16*>(bank.data), bank.columns};
  multiply(product, x0, bank.columns, bank.rows, pack, false, out, out_stride);
}

void tiled_weighted_sums(const TileProduct& product, const Rows& coefficients, const Matrix& bank, bool add,
                         float* out) {
  const PackRows pack{static_cast<const c10::BFloat16*>(bank.data), bank.columns};
  multiply(product, coefficients, bank.rows, bank.columns, pack, add, out, bank.columns);
}

}  // namespace contrastive_i2v::cpu
