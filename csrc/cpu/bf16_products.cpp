// See bf16_products.h. Some slices of the depth at a time: the left rows are made tiles once, where they have
// to be; then each thread takes panels of columns, packs its panel of the bank in its own cache and runs down
// all the left tiles. The slices are fixed and summed in order, so no bit depends on the number of threads.
// The memory is a slice of the left side (2.3 MB for 1,024 rows of two parts) or 16 tiles, and 66 KB a
// thread.

#include "bf16_products.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <utility>

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

void fill_left(const TileProduct& product, const Rows& a, Range rows, Range depth, Tile::Left& tile) {
  const int64_t end = product.whole ? Tile::kDepth : depth.count + depth.count % 2;
  for (int64_t i = 0; i < (product.whole ? product.rows() : rows.count); ++i) {
    c10::BFloat16 *high = tile.data + i * Tile::kStride, *low = high + Tile::kRows / 2 * Tile::kStride;
    const int64_t count = i < rows.count ? depth.count : 0;
    const float* from = a.data + (rows.begin + i) * a.stride + depth.begin;
    if (product.parts == 1) {
      kernels().round(from, count, high);
    } else {
      split(from, count, high, low);
      std::fill(low + count, low + end, c10::BFloat16(0));
    }
    std::fill(high + count, high + end, c10::BFloat16(0));
  }
}

// The right side of x0 bank^T: depth runs along a row of the bank, columns are its rows.
struct PackTransposed {
  const c10::BFloat16* bank;
  int64_t stride;

  void operator()(Range depth, Range columns, Tile::Right& tile) const {
    const int64_t pairs = depth.count / 2;
    const c10::BFloat16* from = bank + columns.begin * stride + depth.begin;
    kernels().transpose_pairs(from, stride, columns.count, pairs, tile.data, Tile::kColumns);
    for (int64_t n = 0; n < columns.count && depth.count % 2; ++n) {
      c10::BFloat16* pair = tile.data + 2 * (pairs * Tile::kColumns + n);
      pair[0] = from[n * stride + 2 * pairs];
      pair[1] = 0;
    }
  }
};

// The right side of coefficients bank: depth runs down the rows of the bank.
struct PackRows {
  const c10::BFloat16* bank;
  int64_t stride;

  void operator()(Range depth, Range columns, Tile::Right& tile) const {
    const c10::BFloat16* even = bank + depth.begin * stride + columns.begin;
    c10::BFloat16* to = tile.data;
    for (int64_t k = 0; k < depth.count; k += 2, even += 2 * stride, to += 2 * Tile::kColumns) {
      kernels().interleave(even, k + 1 < depth.count ? even + stride : nullptr, columns.count, to);
    }
  }
};

// Slices that are multiplied one panel at a time: what makes 16 tiles, which stay in cache for the next
// panel.
int64_t slices_together(int64_t tiles, int64_t slices) {
  constexpr int64_t kLeftTiles = 16;
  return std::clamp<int64_t>(kLeftTiles / tiles, 1, slices);
}

// The left side from floats.
class FilledLeft {
 public:
  FilledLeft(const TileProduct& product, const Rows& a, int64_t depth)
      : product_(product), a_(a), depth_(depth), tiles_(tiles(a.count, product.rows())) {
    together_ = slices_together(tiles_, tiles(depth, Tile::kDepth));
    left_ = std::make_unique_for_overwrite<Tile::Left[]>(together_ * tiles_);
  }
  int64_t rows() const { return a_.count; }
  int64_t together() const { return together_; }  // slices

  void prepare(int64_t begin, int64_t end) {
    begin_ = begin;
    at::parallel_for(0, (end - begin) * tiles_, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        fill_left(product_, a_, tile_range(i % tiles_, product_.rows(), a_.count),
                  tile_range(begin + i / tiles_, Tile::kDepth, depth_), left_[i]);
      }
    });
  }
  Parts at(int64_t slice, int64_t tile) const {
    return {left_[(slice - begin_) * tiles_ + tile].data, Tile::kStride};
  }

 private:
  const TileProduct& product_;
  const Rows& a_;
  int64_t depth_, tiles_, together_, begin_ = 0;
  std::unique_ptr<Tile::Left[]> left_;
};

// The left side where it is.
class ReadyLeft {
 public:
  ReadyLeft(const Parts& a, int64_t count, int64_t depth)
      : a_(a),
        count_(count),
        together_(slices_together(tiles(count, Tile::kRows), tiles(depth, Tile::kDepth))) {}
  int64_t rows() const { return count_; }
  int64_t together() const { return together_; }
  void prepare(int64_t, int64_t) {}
  Parts at(int64_t slice, int64_t tile) const {
    return {a_.data + tile * Tile::kRows * a_.stride + slice * Tile::kDepth, a_.stride};
  }

 private:
  Parts a_;
  int64_t count_, together_;
};

// Columns of a panel: with `whole` all that a tile has, else such that panels are about as wide as each
// other.
int64_t panel_columns(bool whole, int64_t columns) {
  constexpr int64_t lanes = 16;
  return whole ? Tile::kColumns : tiles(tiles(columns, tiles(columns, Tile::kColumns)), lanes) * lanes;
}

// out [left.rows(), columns] (+)= left [left.rows(), depth] b [depth, columns]
template <typename Left, typename Pack>
void multiply(const TileProduct& product, Left left, int64_t depth, int64_t columns, const Pack& pack,
              bool add, float* out, int64_t out_stride) {
  const int64_t row_tiles = tiles(left.rows(), product.rows()), slices = tiles(depth, Tile::kDepth);
  const int64_t width = panel_columns(product.whole, columns);
  for (int64_t begin = 0; begin < slices; begin += left.together()) {
    const int64_t end = std::min(begin + left.together(), slices);
    left.prepare(begin, end);
    // Panel by panel; a thread may begin or end in the middle of one.
    at::parallel_for(0, tiles(columns, width) * row_tiles, 1, [&](int64_t first, int64_t last) {
      const auto right = std::make_unique_for_overwrite<Tile::Right>();
      for (int64_t i = first, next; i < last; i = next) {
        const int64_t p = i / row_tiles;
        next = std::min(last, (p + 1) * row_tiles);
        const Range panel = tile_range(p, width, columns);
        for (int64_t s = begin; s < end; ++s) {
          const Range slice = tile_range(s, Tile::kDepth, depth);
          if (product.whole && (slice.count < Tile::kDepth || panel.count < width)) *right = {};
          pack(slice, panel, *right);
          for (int64_t t = i % row_tiles; t < next - p * row_tiles; ++t) {
            const Range rows = tile_range(t, product.rows(), left.rows());
            product.multiply(left.at(s, t), *right,
                             {out + rows.begin * out_stride + panel.begin, out_stride, rows.count,
                              panel.count, slice.count, add || s > 0});
          }
        }
      }
      product.release();
    });
  }
}

template <typename Left>
void logits(const TileProduct& product, Left left, const Matrix& bank, float* out, int64_t out_stride) {
  const PackTransposed pack{static_cast<const c10::BFloat16*>(bank.data), bank.columns};
  multiply(product, std::move(left), bank.columns, bank.rows, pack, false, out, out_stride);
}

}  // namespace

void tiled_logits(const TileProduct& product, const Rows& x0, const Matrix& bank, float* out,
                  int64_t out_stride) {
  logits(product, FilledLeft(product, x0, bank.columns), bank, out, out_stride);
}

void tiled_logits(const TileProduct& product, const Parts& x0, int64_t count, const Matrix& bank, float* out,
                  int64_t out_stride) {
  logits(product, ReadyLeft(x0, count, bank.columns), bank, out, out_stride);
}

void tiled_weighted_sums(const TileProduct& product, const Rows& coefficients, const Matrix& bank, bool add,
                         float* out) {
  const PackRows pack{static_cast<const c10::BFloat16*>(bank.data), bank.columns};
  multiply(product, FilledLeft(product, coefficients, bank.rows), bank.rows, bank.columns, pack, add, out,
           bank.columns);
}

}  // namespace contrastive_i2v::cpu
