// The small regime: D is cut into fixed slices, and three parallel loops do everything.
//   1. a slice forms its x0, its part of the squared error and of every dot product;
//   2. a query adds the slices up in order and takes its softmax over each bank;
//   3. a slice writes its part of the gradient from the bank slice that is still in cache.
// The slices do not depend on the number of threads, so neither does a single bit of the result.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "bf16_products.h"
#include "kernels.h"

namespace contrastive_i2v::cpu {

namespace {

constexpr int64_t kMaxDots = 1 << 14;      // above, the library's matrix product wins
constexpr int64_t kMaxWideDots = 1 << 10;  // where AVX512-BF16 wins from there on
constexpr int64_t kMaxFloats = 1 << 21;    // of packed latents: what stays in cache
constexpr int64_t kSlice = 512;
constexpr int64_t kStride = kSlice + 16;  // rows a power of two apart would share a few sets of the cache
constexpr int64_t kSerial = 1 << 12;      // softmax weights that are not worth waking threads for

// Aligned to cache lines: vectors that straddle two cost as much as the arithmetic.
struct Free {
  void operator()(float* data) const { ::operator delete[](data, std::align_val_t(64)); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer buffer(int64_t size) { return Buffer(new (std::align_val_t(64)) float[size]); }

}  // namespace

bool fits_fused(const Problem& problem) {
  const int64_t candidates = problem.candidates();
  const int64_t dots = problem.queries * candidates;
  return dots <= kMaxDots && (problem.queries + candidates) * problem.elements <= kMaxFloats &&
         (dots <= kMaxWideDots || !find_rounding_product(problem));
}

void run_fused(const Problem& problem) {
  const Kernels& run = kernels();
  const int64_t queries = problem.queries, elements = problem.elements;
  const int64_t slices = (elements + kSlice - 1) / kSlice;
  const int64_t candidates = problem.candidates();
  const int64_t rows = queries + candidates;

  // A bank of floats is read where it is, unless its last vectors would reach into the next row.
  const auto is_packed = [&](const Bank& bank) { return !bank.rows.is_float() || elements % kPad != 0; };
  int64_t packed_rows = queries;
  for (const Bank& bank : problem.banks) packed_rows += is_packed(bank) ? bank.rows.rows : 0;

  const Buffer packed = buffer(slices * packed_rows * kStride);  // [slice][row][d], zeros after D
  const Buffer dots = buffer(slices * queries * candidates);     // [slice][query][candidate]
  const Buffer errors = buffer(slices * queries);                // [slice][query], squared
  const Buffer norms = buffer(slices * rows);                    // [slice][row], squared
  const auto slice_begin = [&](int64_t s) { return s * kSlice; };
  const auto slice_count = [&](int64_t s) { return std::min(kSlice, elements - s * kSlice); };
  const auto slice_depth = [&](int64_t s) { return (slice_count(s) + kPad - 1) / kPad * kPad; };
  const auto slice_x0 = [&](int64_t s) { return packed.get() + s * packed_rows * kStride; };
  const auto slice_banks = [&](int64_t s) {
    std::vector<Rows> banks;
    const float* next = slice_x0(s) + queries * kStride;
    for (const Bank& bank : problem.banks) {
      const int64_t count = bank.rows.rows;
      if (is_packed(bank)) {
        banks.push_back({next, kStride, count});
        next += count * kStride;
      } else {
        banks.push_back({static_cast<const float*>(bank.rows.data) + slice_begin(s), elements, count});
      }
    }
    return banks;
  };

  at::parallel_for(0, slices, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const int64_t begin = slice_begin(s), count = slice_count(s), depth = slice_depth(s);
      float* row = slice_x0(s);
      float* norm = norms.get() + s * rows;
      const auto next_row = [&] {
        std::fill(row + count, row + depth, 0.0f);
        row += kStride;
      };
      for (int64_t i = 0; i < queries; ++i) {
        const RowSums sums = run.reconstruct(problem, i, begin, count, row);
        errors[s * queries + i] = static_cast<float>(sums.squared_error);
        *norm++ = static_cast<float>(sums.squared_norm);
        next_row();
      }
      const std::vector<Rows> banks = slice_banks(s);
      float* out = dots.get() + s * queries * candidates;
      for (size_t k = 0; k < banks.size(); ++k) {
        const Bank& bank = problem.banks[k];
        for (int64_t j = 0; is_packed(bank) && j < banks[k].count; ++j) {
          run.read(bank.rows, j, begin, count, row);
          next_row();
        }
        for (int64_t j = 0; problem.normalize && j < banks[k].count; ++j) {
          *norm++ = static_cast<float>(run.squared_norm(banks[k].data + j * banks[k].stride, depth));
        }
        run.dot_products({slice_x0(s), kStride, queries}, banks[k], depth, out, candidates);
        out += banks[k].count;
      }
    }
  });

  const auto scale_of = [&](int64_t row) {
    double sum = 0;
    for (int64_t s = 0; s < slices; ++s) sum += norms[s * rows + row];
    return inverse_norm(sum);
  };
  std::vector<float> candidate_scale, projections(queries, 0.0f);
  for (int64_t j = 0; problem.normalize && j < candidates; ++j) {
    candidate_scale.push_back(static_cast<float>(scale_of(queries + j)));
  }

  const int64_t grain = std::max<int64_t>(1, kSerial / std::max<int64_t>(1, candidates));
  at::parallel_for(0, queries, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      double error = 0, projection = 0;
      for (int64_t s = 0; s < slices; ++s) error += errors[s * queries + i];
      problem.mse[i] = static_cast<float>(error / static_cast<double>(elements));
      float* row = dots.get() + i * candidates;  // the first slice's row becomes the sum
      for (int64_t s = 1; s < slices; ++s) run.add(row + s * queries * candidates, candidates, row);
      const double x0_scale = problem.normalize ? scale_of(i) : 1;
      const float* bank_scale = problem.normalize ? candidate_scale.data() : nullptr;
      for (size_t k = 0; k < problem.banks.size(); ++k) {
        projection += run.softmax(problem, static_cast<int64_t>(k), i, row, x0_scale, bank_scale);
        row += problem.banks[k].rows.rows;
        if (bank_scale) bank_scale += problem.banks[k].rows.rows;
      }
      projections[i] = static_cast<float>(projection);
    }
  });
  if (!problem.gradient) return;

  at::parallel_for(0, slices, 1, [&](int64_t first, int64_t last) {
    const Buffer sums = buffer(queries * kSlice);
    for (int64_t s = first; s < last; ++s) {
      run.weighted_sums(dots.get(), queries, slice_banks(s), slice_depth(s), sums.get());
      for (int64_t i = 0; i < queries; ++i) {
        run.finish(problem, i, slice_begin(s), slice_count(s), sums.get() + i * slice_depth(s),
                   projections[i]);
      }
    }
  });
}

}  // namespace contrastive_i2v::cpu
