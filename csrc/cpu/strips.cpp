// The large regime: the library's matrix product over a strip of queries, with row kernels around it. A bank
// that is not float is converted a block at a time, so the memory is a few strips whatever B, N and the
// dtypes are.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include "rows.h"

namespace contrastive_i2v::cpu {

namespace {

constexpr int64_t kStrip = 256;   // queries
constexpr int64_t kBlock = 1024;  // candidates

// Rows [begin, begin + count) of a bank as a float matrix: a view where it is float, else through `scratch`.
at::Tensor read_block(const Matrix& bank, int64_t begin, int64_t count, at::Tensor& scratch) {
  if (bank.is_float()) {
    float* data = const_cast<float*>(static_cast<const float*>(bank.data)) + begin * bank.columns;
    return at::from_blob(data, {count, bank.columns}, at::kFloat);
  }
  if (!scratch.defined()) scratch = at::empty({std::min(kBlock, bank.rows), bank.columns}, at::kFloat);
  float* to = scratch.mutable_data_ptr<float>();
  at::parallel_for(0, count, 4, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) bank.read(begin + j, 0, bank.columns, to + j * bank.columns);
  });
  return scratch.narrow(0, 0, count);
}

std::vector<float> inverse_norms(const Matrix& bank) {
  std::vector<float> scale(bank.rows);
  at::parallel_for(0, bank.rows, 4, [&](int64_t first, int64_t last) {
    std::vector<float> scratch(bank.is_float() ? 0 : bank.columns);
    for (int64_t j = first; j < last; ++j) {
      scale[j] = static_cast<float>(
          inverse_norm(squared_norm(bank.read(j, 0, bank.columns, scratch.data()), bank.columns)));
    }
  });
  return scale;
}

}  // namespace

void run_strips(const Problem& problem) {
  const int64_t elements = problem.elements, strip = std::min(kStrip, problem.queries);
  std::vector<std::vector<float>> bank_scales;
  for (const Bank& bank : problem.banks) {
    bank_scales.push_back(problem.normalize ? inverse_norms(bank.rows) : std::vector<float>());
  }
  at::Tensor x0_strip = at::empty({strip, elements}, at::kFloat);
  at::Tensor grad_strip = problem.gradient ? at::empty({strip, elements}, at::kFloat) : at::Tensor();
  std::vector<at::Tensor> scratch(problem.banks.size());
  std::vector<double> x0_scale(strip), projection(strip);

  for (int64_t begin = 0; begin < problem.queries; begin += strip) {
    const int64_t count = std::min(strip, problem.queries - begin);
    at::Tensor x0 = x0_strip.narrow(0, 0, count);
    float* x0_data = x0.mutable_data_ptr<float>();
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      std::vector<float> row_scratch(3 * elements);
      for (int64_t i = first; i < last; ++i) {
        const RowSums sums =
            reconstruct(problem, begin + i, 0, elements, x0_data + i * elements, row_scratch.data());
        problem.mse[begin + i] = static_cast<float>(sums.squared_error / static_cast<double>(elements));
        x0_scale[i] = problem.normalize ? inverse_norm(sums.squared_norm) : 1;
        projection[i] = 0;
      }
    });

    at::Tensor grad;
    if (problem.gradient) grad = grad_strip.narrow(0, 0, count).zero_();
    for (size_t k = 0; k < problem.banks.size(); ++k) {
      const Matrix& bank = problem.banks[k].rows;
      at::Tensor logits = at::empty({count, bank.rows}, at::kFloat);
      for (int64_t j = 0; j < bank.rows; j += kBlock) {
        const int64_t block = std::min(kBlock, bank.rows - j);
        at::Tensor out = logits.narrow(1, j, block);
        at::mm_out(out, x0, read_block(bank, j, block, scratch[k]).t());
      }
      float* row = logits.mutable_data_ptr<float>();
      at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          projection[i] += softmax_row(problem, k, begin + i, row + i * bank.rows, x0_scale[i],
                                       problem.normalize ? bank_scales[k].data() : nullptr);
        }
      });
      if (!problem.gradient) continue;
      for (int64_t j = 0; j < bank.rows; j += kBlock) {
        const int64_t block = std::min(kBlock, bank.rows - j);
        grad.addmm_(logits.narrow(1, j, block), read_block(bank, j, block, scratch[k]));
      }
    }
    if (!problem.gradient) continue;
    const float* grad_data = grad.const_data_ptr<float>();
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      std::vector<float> row_scratch(2 * elements);
      for (int64_t i = first; i < last; ++i) {
        finish(problem, begin + i, 0, elements, grad_data + i * elements, x0_data + i * elements,
               projection[i], row_scratch.data());
      }
    });
  }
}

}  // namespace contrastive_i2v::cpu
