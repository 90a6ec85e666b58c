// The small regime: D is cut into fixed slices, and three parallel loops do everything.
//   1. a slice forms its x0, its part of the squared error and of every dot product;
//   2. a query adds the slices up in order and takes its softmax over each bank;
//   3. a slice writes its part of the gradient from the bank slice that is still in cache.
// The slices do not depend on the number of threads, so neither does a single bit of the result.

#include <ATen/Parallel.h>

#include <memory>

#include "rows.h"
#include "tiles.h"

namespace contrastive_i2v::cpu {

namespace {

constexpr int64_t kMaxDots = 1 << 14;    // above, the library's matrix product wins
constexpr int64_t kMaxFloats = 1 << 21;  // of packed latents: what stays in cache

using Buffer = std::unique_ptr<float[]>;

Buffer buffer(int64_t size) { return Buffer(new float[size]); }

int64_t count_candidates(const Problem& problem) {
  int64_t candidates = 0;
  for (const Bank& bank : problem.banks) candidates += bank.rows.rows;
  return candidates;
}

}  // namespace

bool fits_fused(const Problem& problem) {
  const int64_t candidates = count_candidates(problem);
  return problem.queries * candidates <= kMaxDots &&
         (problem.queries + candidates) * problem.elements <= kMaxFloats;
}

void run_fused(const Problem& problem) {
  const int64_t queries = problem.queries, elements = problem.elements;
  const int64_t slices = (elements + kSlice - 1) / kSlice;
  const int64_t candidates = count_candidates(problem);
  const int64_t rows = queries + candidates;

  const Buffer packed = buffer(slices * rows * kSlice);  // [slice][x0 of the queries, then candidates][d]
  const Buffer dots = buffer(slices * queries * candidates);  // [slice][query][candidate]
  const Buffer errors = buffer(slices * queries);             // [slice][query], squared
  const Buffer norms = buffer(slices * rows);                 // [slice][row], squared

  at::parallel_for(0, slices, 1, [&](int64_t first, int64_t last) {
    float scratch[3 * kSlice];
    for (int64_t s = first; s < last; ++s) {
      const int64_t begin = s * kSlice, count = std::min(kSlice, elements - begin);
      float* row = packed.get() + s * rows * kSlice;
      float* norm = norms.get() + s * rows;
      const auto next_row = [&] {
        std::fill(row + count, row + kSlice, 0.0f);
        row += kSlice;
        ++norm;
      };
      for (int64_t i = 0; i < queries; ++i) {
        const RowSums sums = reconstruct(problem, i, begin, count, row, scratch);
        errors[s * queries + i] = static_cast<float>(sums.squared_error);
        *norm = static_cast<float>(sums.squared_norm);
        next_row();
      }
      for (const Bank& bank : problem.banks) {
        for (int64_t j = 0; j < bank.rows.rows; ++j) {
          const float* from = bank.rows.read(j, begin, count, row);
          if (from != row) std::copy(from, from + count, row);
          if (problem.normalize) *norm = static_cast<float>(squared_norm(row, count));
          next_row();
        }
      }
      const float* x0 = packed.get() + s * rows * kSlice;
      dot_products(x0, queries, x0 + queries * kSlice, candidates, dots.get() + s * queries * candidates);
    }
  });

  const auto scale_of = [&](int64_t row) {
    double sum = 0;
    for (int64_t s = 0; s < slices; ++s) sum += norms[s * rows + row];
    return inverse_norm(sum);
  };
  std::vector<float> candidate_scale;
  std::vector<double> projection(queries, 0.0);
  for (int64_t j = 0; problem.normalize && j < candidates; ++j)
    candidate_scale.push_back(static_cast<float>(scale_of(queries + j)));

  at::parallel_for(0, queries, 8, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      double error = 0;
      for (int64_t s = 0; s < slices; ++s) error += errors[s * queries + i];
      problem.mse[i] = static_cast<float>(error / static_cast<double>(elements));
      float* row = dots.get() + i * candidates;  // the first slice's row becomes the sum
      for (int64_t s = 1; s < slices; ++s) {
        const float* part = row + s * queries * candidates;
        for (int64_t j = 0; j < candidates; ++j) row[j] += part[j];
      }
      const double x0_scale = problem.normalize ? scale_of(i) : 1;
      const float* bank_scale = problem.normalize ? candidate_scale.data() : nullptr;
      for (size_t k = 0; k < problem.banks.size(); ++k) {
        projection[i] += softmax_row(problem, k, i, row, x0_scale, bank_scale);
        row += problem.banks[k].rows.rows;
        if (bank_scale) bank_scale += problem.banks[k].rows.rows;
      }
    }
  });
  if (!problem.gradient) return;

  at::parallel_for(0, slices, 1, [&](int64_t first, int64_t last) {
    float scratch[2 * kSlice];
    const Buffer contrastive = buffer(queries * kSlice);
    for (int64_t s = first; s < last; ++s) {
      const int64_t begin = s * kSlice, count = std::min(kSlice, elements - begin);
      const float* x0 = packed.get() + s * rows * kSlice;
      weighted_sums(dots.get(), queries, x0 + queries * kSlice, candidates, contrastive.get());
      for (int64_t i = 0; i < queries; ++i) {
        finish(problem, i, begin, count, contrastive.get() + i * kSlice, x0 + i * kSlice,
               static_cast<float>(projection[i]), scratch);
      }
    }
  });
}

}  // namespace contrastive_i2v::cpu
