// Phases 1 and 2: a CTA's slice of x0 and of the banks, and the cluster's part of every dot product.
#pragma once

#include "../common/latents.h"
#include "cta.cuh"
#include "matrix.cuh"

namespace contrastive_i2v::cuda {

constexpr int kWarpRows = 2;                             // warps side by side along a tile's queries
constexpr int kWarpColumns = kWarps / kWarpRows;         // and along its candidates
constexpr int kRowTiles = kTile / kGranule / kWarpRows;  // 16 x 16 blocks of a warp
constexpr int kColumnTiles = kTile / kGranule / kWarpColumns;

// Which 16 bytes of a slice's rows a thread works on: always the same columns, every `step`th row. A row
// belongs to `lanes` neighbouring lanes. Rows come in multiples of 16, so the lanes of a warp loop together.
template <typename T>
struct Share {
  int lanes, first, step, column;

  __device__ explicit Share(const Cta<T>& cta)
      : lanes(cta.plan.slice_width / Cta<T>::kVector),
        first(cta.thread / lanes),
        step(kThreads / lanes),
        column(cta.thread % lanes * Cta<T>::kVector) {}
};

template <typename T>
__device__ __forceinline__ void load_rows(const Cta<T>& cta, T* to, const T* from, int count, int padded) {
  const Share<T> share(cta);
  const int begin = cta.first_element + share.column;  // may lie past the end: the last slice is padded
  const int left = max(0, min(Cta<T>::kVector, cta.plan.elements - begin));
  for (int row = share.first; row < padded; row += share.step) {
    T* at = to + row * cta.stride + share.column;
    const int valid = row < count ? left : 0;
    const T* source = valid > 0 ? from + static_cast<int64_t>(row) * cta.plan.elements + begin : from;
    if (cta.problem.aligned) {
      copy_async(at, source, valid * static_cast<int>(sizeof(T)));
    } else {
      for (int e = 0; e < Cta<T>::kVector; ++e) at[e] = e < valid ? source[e] : from_float<T>(0.0f);
    }
  }
}

template <typename T>
__device__ __forceinline__ void load(const Cta<T>& cta) {
  const auto latents = [&cta](T* to, const void* from) {
    const T* rows = static_cast<const T*>(from) + static_cast<int64_t>(cta.first_query) * cta.plan.elements;
    load_rows(cta, to, rows, cta.queries, cta.plan.block_rows);
  };
  latents(cta.prediction, cta.problem.prediction);
  latents(cta.x0, cta.problem.noisy);
  latents(cta.target, cta.problem.target);
  for (int k = 0; k < cta.plan.banks; ++k) {
    const Bank& bank = cta.problem.banks[k];
    load_rows(cta, cta.bank + bank.begin * cta.stride, static_cast<const T*>(bank.rows), bank.count,
              small::round_up(bank.count, kGranule));
  }
}

template <typename T>
__device__ __forceinline__ void form_x0(const Cta<T>& cta) {
  const Share<T> share(cta);
  for (int row = share.first; row < cta.plan.block_rows; row += share.step) {
    const int at = row * cta.stride + share.column;
    const int query = cta.first_query + min(row, cta.queries - 1);
    const StoredCoefficients c =
        stored_coefficients(cta.problem.c_skip[query], cta.problem.c_out[query], cta.problem.normalize);
    const auto f = *reinterpret_cast<const Vector<T>*>(cta.prediction + at);
    const auto y = *reinterpret_cast<const Vector<T>*>(cta.target + at);
    auto x = *reinterpret_cast<const Vector<T>*>(cta.x0 + at);
    float error = 0, norm = 0;
#pragma unroll
    for (int e = 0; e < Cta<T>::kVector; ++e) {
      const float value = to_float(f.element[e]), difference = value - to_float(y.element[e]);
      error += difference * difference;
      x.element[e] = from_float<T>(reconstruct(c, to_float(x.element[e]), value));
      norm += to_float(x.element[e]) * to_float(x.element[e]);
    }
    *reinterpret_cast<Vector<T>*>(cta.x0 + at) = x;
    error = sum_lanes(error, share.lanes);
    norm = sum_lanes(norm, share.lanes);
    if (share.column == 0) {
      cta.row_error[row] = error;
      cta.row_norm[row] = norm;
    }
  }
}

template <typename T>
__device__ __forceinline__ void sum_bank_norms(const Cta<T>& cta) {
  const Share<T> share(cta);
  for (int row = share.first; row < cta.plan.candidates; row += share.step) {
    const auto z = *reinterpret_cast<const Vector<T>*>(cta.bank + row * cta.stride + share.column);
    float norm = 0;
#pragma unroll
    for (int e = 0; e < Cta<T>::kVector; ++e) norm += to_float(z.element[e]) * to_float(z.element[e]);
    norm = sum_lanes(norm, share.lanes);
    if (share.column == 0) cta.bank_norm[row] = norm;
  }
}

template <typename T>
__device__ __forceinline__ float sum_over_cluster(const Cta<T>& cta, float* mine) {
  float sum = 0;
  for (int rank = 0; rank < cta.plan.cluster; ++rank) sum += *in_neighbour(mine, rank, cta.plan.cluster);
  return sum;
}

template <typename T>
__device__ __forceinline__ void write_partial_sums(const Cta<T>& cta) {
  for (int row = cta.thread * cta.plan.cluster + cta.rank; row < cta.queries;
       row += kThreads * cta.plan.cluster) {
    float* to = cta.partials + cta.plan.partial_row(cta.block, cta.split, row) + cta.plan.candidates;
    *reinterpret_cast<float4*>(to) = make_float4(sum_over_cluster(cta, cta.row_norm + row),
                                                 sum_over_cluster(cta, cta.row_error + row), 0.0f, 0.0f);
  }
  if (!cta.problem.normalize) return;
  float* to = cta.partials + cta.plan.partial_row(cta.block, cta.split, cta.plan.block_rows);
  const int end = min((cta.rank + 1) * cta.plan.columns, cta.plan.candidates);
  for (int j = cta.rank * cta.plan.columns + cta.thread; j < end; j += kThreads)
    to[j] = sum_over_cluster(cta, cta.bank_norm + j);
}

template <typename T>
__device__ __forceinline__ void write_partial_products(const Cta<T>& cta) {
  const int end = min((cta.rank + 1) * cta.plan.columns, cta.plan.candidates);
  for (int column = cta.rank * cta.plan.columns; column < end; column += kTile) {
    for (int row = 0; row < cta.plan.block_rows; row += kTile) {
      write_partial_tile(cta, row, min(kTile, cta.plan.block_rows - row), column, min(kTile, end - column));
    }
  }
}

template <typename T>
__device__ __forceinline__ void stage(const Cta<T>& cta, T* to, T* mine, int rows, int rank) {
  const auto* from = reinterpret_cast<const uint4*>(in_neighbour(mine, rank, cta.plan.cluster));
  const int vectors = rows * cta.stride / Cta<T>::kVector;
#pragma unroll 4
  for (int n = cta.thread; n < vectors; n += kThreads) reinterpret_cast<uint4*>(to)[n] = from[n];
}

// Queries [row, row + rows) of this block times candidates [column, column + columns), over the cluster's
// slices.
template <typename T>
__device__ __forceinline__ void write_partial_tile(const Cta<T>& cta, int row, int rows, int column,
                                                   int columns) {
  float product[kRowTiles][kColumnTiles][2][4] = {};
  T* staged_x0 = reinterpret_cast<T*>(cta.scratch);
  T* staged_bank = staged_x0 + rows * cta.stride;
  const int row_tiles = rows / kGranule, column_tiles = columns / kGranule;
  const int first_row = cta.warp % kWarpRows, first_column = cta.warp / kWarpRows;

  for (int step = 0; step < cta.plan.cluster; ++step) {
    const T* left = cta.x0 + row * cta.stride;
    const T* right = cta.bank + column * cta.stride;
    if (step > 0) {
      const int rank = (cta.rank + step) % cta.plan.cluster;  // each starts at another neighbour
      sync_threads();  // all warps are done with what was staged before
      stage(cta, staged_x0, cta.x0 + row * cta.stride, rows, rank);
      stage(cta, staged_bank, cta.bank + column * cta.stride, columns, rank);
      sync_threads();  // the neighbour's rows are staged, whoever copied them
      left = staged_x0;
      right = staged_bank;
    }
#pragma unroll 2
    for (int d = 0; d < cta.plan.slice_width; d += Block<T>::kDepth) {
      typename Block<T>::B b[kColumnTiles];
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        const int tile = first_column + j * kWarpColumns;
        if (tile < column_tiles)
          Block<T>::load_b(b[j], right + tile * kGranule * cta.stride + d, cta.stride, cta.lane);
      }
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        const int row_tile = first_row + i * kWarpRows;
        if (row_tile >= row_tiles) continue;
        typename Block<T>::A a;
        Block<T>::load_a(a, left + row_tile * kGranule * cta.stride + d, cta.stride, cta.lane);
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          if (first_column + j * kWarpColumns < column_tiles) Block<T>::multiply(product[i][j], a, b[j]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      const int row_tile = first_row + i * kWarpRows, column_tile = first_column + j * kWarpColumns;
      if (row_tile >= row_tiles || column_tile >= column_tiles) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {  // halves of the rows, halves of the columns
        const int query = row + row_tile * kGranule + cta.lane / 4 + e / 2 * 8;
        const int candidate = column + column_tile * kGranule + e % 2 * 8 + cta.lane % 4 * 2;
        const float* pair = product[i][j][e % 2] + e / 2 * 2;
        float* to = cta.partials + cta.plan.partial_row(cta.block, cta.split, query) + candidate;
        *reinterpret_cast<float2*>(to) = make_float2(pair[0], pair[1]);
      }
    }
  }
}

}  // namespace contrastive_i2v::cuda
