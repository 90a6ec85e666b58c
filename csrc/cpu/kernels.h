// The vectorised loops of the loss. kernels.cpp is compiled once for each instruction set, and the one that
// ATen would use on this processor is chosen at run time (ATEN_CPU_CAPABILITY=default|avx2|avx512 forces
// one).
#pragma once

#include <c10/util/BFloat16.h>

#include "problem.h"

namespace contrastive_i2v::cpu {

constexpr int64_t kPad = 16;  // floats: a vector of the widest instruction set

struct RowSums {
  double squared_error = 0;  // sum (F - target)^2
  double squared_norm = 0;   // sum x0^2, only where it is needed
};

// Rows of float, `stride` apart.
struct Rows {
  const float* data = nullptr;
  int64_t stride = 0;
  int64_t count = 0;
};

struct Kernels {
  // to = row[begin : begin + count] as float
  void (*read)(const Matrix& matrix, int64_t row, int64_t begin, int64_t count, float* to);

  // to[n] = from[n], rounded to nearest
  void (*round)(const float* from, int64_t count, c10::BFloat16* to);

  // Pairs of bfloat16 as one unit: to[p * to_stride + n] = from[n, p], with from's stride in bfloat16
  void (*transpose_pairs)(const c10::BFloat16* from, int64_t stride, int64_t rows, int64_t pairs,
                          c10::BFloat16* to, int64_t to_stride);

  // to[2 n] = even[n], to[2 n + 1] = odd[n], or 0 when `odd` is null
  void (*interleave)(const c10::BFloat16* even, const c10::BFloat16* odd, int64_t count, c10::BFloat16* to);

  double (*squared_norm)(const float* row, int64_t count);

  // Turns a query's dot products with bank k, in place, into the coefficients c_j of this bank's share of
  // dloss/dF, `sum_j c_j z_j - projection * x0`, writes its cross entropy, and returns the projection (0
  // without normalisation).
  double (*softmax)(const Problem& problem, int64_t k, int64_t i, float* row, double x0_scale,
                    const float* bank_scale);

  // to[n] += from[n]
  void (*add)(const float* from, int64_t n, float* to);

  // x0_i and its sums over columns [begin, begin + count)
  RowSums (*reconstruct)(const Problem& problem, int64_t i, int64_t begin, int64_t count, float* x0);

  // problem.gradient over columns [begin, begin + count) of row i, from sum_j c_j z_j, which may be where the
  // gradient goes.
  void (*finish)(const Problem& problem, int64_t i, int64_t begin, int64_t count, const float* contrastive,
                 float projection);

  // out[i * out_stride + j] = <a_i, b_j> over `depth` columns, a multiple of kPad
  void (*dot_products)(const Rows& a, const Rows& b, int64_t depth, float* out, int64_t out_stride);

  // out_i = sum_kj weights[i, kj] z_kj over `depth` columns, a multiple of kPad; weights [rows, candidates],
  // out [rows, depth]
  void (*weighted_sums)(const float* weights, int64_t rows, const std::vector<Rows>& banks, int64_t depth,
                        float* out);
};

const Kernels& kernels();

}  // namespace contrastive_i2v::cpu
