// The large regime: the library's matrix product over a strip of queries, with row kernels around it. x0 and
// then the gradient are formed where the gradient belongs, when that is float. A bank that is not float is
// converted a block at a time, or multiplied as it is where the processor can (bf16_products.h). So the
// memory is the logits of a strip, whatever B, N and the dtypes are.

#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "bf16_products.h"
#include "kernels.h"

namespace contrastive_i2v::cpu {

namespace {

constexpr int64_t kStrip = 1024;  // queries at most
constexpr int64_t kStripFloats =
    5 << 20;  // of a strip: its logits, and x0 where it has no place in the gradient
constexpr int64_t kBlockFloats = 1 << 20;  // of a bank that is widened

at::Tensor view(const void* data, int64_t rows, int64_t columns) {
  return at::from_blob(const_cast<void*>(data), {rows, columns}, at::kFloat);
}

// A bank as float blocks of rows: in place where it is float, else widened into memory that all banks share.
class Blocks {
 public:
  Blocks(const Matrix& bank, at::Tensor& scratch) : bank_(bank), scratch_(scratch) {
    size_ = bank.is_float() ? bank.rows : std::clamp<int64_t>(kBlockFloats / bank.columns, 1, bank.rows);
  }
  int64_t size() const { return size_; }

  at::Tensor at(int64_t begin) const {
    const int64_t count = std::min(size_, bank_.rows - begin), columns = bank_.columns;
    if (bank_.is_float())
      return view(static_cast<const float*>(bank_.data) + begin * columns, count, columns);
    if (!scratch_.defined() || scratch_.numel() < count * columns) {
      scratch_ = at::empty({size_ * columns}, at::kFloat);
    }
    float* to = scratch_.mutable_data_ptr<float>();
    at::parallel_for(0, count, 4, [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) kernels().read(bank_, begin + j, 0, columns, to + j * columns);
    });
    return view(to, count, columns);
  }

 private:
  const Matrix& bank_;
  at::Tensor& scratch_;
  int64_t size_ = 0;
};

std::vector<float> inverse_norms(const Blocks& blocks, const Matrix& bank) {
  std::vector<float> scale(bank.rows);
  for (int64_t begin = 0; begin < bank.rows; begin += blocks.size()) {
    const at::Tensor block = blocks.at(begin);
    const float* rows = block.const_data_ptr<float>();
    at::parallel_for(0, block.size(0), 4, [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        scale[begin + j] =
            static_cast<float>(inverse_norm(kernels().squared_norm(rows + j * bank.columns, bank.columns)));
      }
    });
  }
  return scale;
}

int64_t strip_rows(int64_t queries, int64_t floats_each) {
  const int64_t fit = std::clamp<int64_t>(kStripFloats / std::max<int64_t>(1, floats_each), 64, kStrip);
  const int64_t strips = (queries + fit - 1) / fit;
  return (queries + strips - 1) / strips;
}

// A float prediction keeps products in float.
const TileProduct* tile_product(const Problem& problem, const Matrix& bank, int64_t strip) {
  const bool is_bf16 = problem.prediction.dtype == at::kBFloat16 && bank.dtype == at::kBFloat16;
  const TileProduct* product = is_bf16 ? find_tile_product(strip, bank.rows, bank.columns) : nullptr;
  return product && product->parts == 2 ? product : nullptr;
}

// x0 of query i, rounded, with the 0 that follows a row of odd length.
RowSums reconstruct_rounded(const Problem& problem, int64_t i, c10::BFloat16* to) {
  constexpr int64_t count = 512;
  float x0[count];
  RowSums sums;
  for (int64_t begin = 0; begin < problem.elements; begin += count) {
    const int64_t n = std::min(count, problem.elements - begin);
    const RowSums part = kernels().reconstruct(problem, i, begin, n, x0);
    sums.squared_error += part.squared_error;
    sums.squared_norm += part.squared_norm;
    kernels().round(x0, n, to + begin);
  }
  if (problem.elements % 2) to[problem.elements] = 0;
  return sums;
}

}  // namespace

void run_strips(const Problem& problem) {
  const Kernels& run = kernels();
  const int64_t elements = problem.elements, candidates = problem.candidates();
  const bool in_place = problem.gradient && problem.gradient_dtype == c10::kFloat;
  const int64_t strip = strip_rows(problem.queries, candidates + (in_place ? 0 : elements));
  at::Tensor scratch;
  std::vector<Blocks> blocks;
  std::vector<std::vector<float>> bank_scales;
  const TileProduct* rounding = find_rounding_product(problem);
  std::vector<const TileProduct*> tiles;
  for (const Bank& bank : problem.banks) {
    blocks.emplace_back(bank.rows, scratch);
    bank_scales.push_back(problem.normalize ? inverse_norms(blocks.back(), bank.rows) : std::vector<float>());
    tiles.push_back(rounding ? rounding : tile_product(problem, bank.rows, strip));
    if (tiles.back()) scratch.reset();  // was for the norms only
  }
  const at::Tensor work_strip = in_place ? at::Tensor() : at::empty({strip, elements}, at::kFloat);
  const at::Tensor logits_strip = at::empty({strip * candidates}, at::kFloat);
  std::vector<double> x0_scale(strip), projection(strip);

  for (int64_t begin = 0; begin < problem.queries; begin += strip) {
    const int64_t count = std::min(strip, problem.queries - begin);
    // x0 until every logit is there, then the contrastive gradient
    at::Tensor work = in_place
                          ? view(static_cast<float*>(problem.gradient) + begin * elements, count, elements)
                          : work_strip.narrow(0, 0, count);
    float* work_data = work.mutable_data_ptr<float>();
    // Rounded, x0 takes half of the same memory. Rows a power of two apart would share sets of the cache.
    auto* rounded = reinterpret_cast<c10::BFloat16*>(work_data);
    const int64_t stride = std::min(2 * elements, elements + elements % 2 + 32);
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const RowSums sums = rounding
                                 ? reconstruct_rounded(problem, begin + i, rounded + i * stride)
                                 : run.reconstruct(problem, begin + i, 0, elements, work_data + i * elements);
        problem.mse[begin + i] = static_cast<float>(sums.squared_error / static_cast<double>(elements));
        x0_scale[i] = problem.normalize ? inverse_norm(sums.squared_norm) : 1;
        projection[i] = 0;
      }
    });

    std::vector<at::Tensor> logits;  // [count, N], which become the coefficients
    float* next = logits_strip.mutable_data_ptr<float>();
    for (size_t k = 0; k < problem.banks.size(); ++k) {
      const int64_t rows = problem.banks[k].rows.rows;
      logits.push_back(view(next, count, rows));
      const Matrix& bank = problem.banks[k].rows;
      if (rounding) {
        tiled_logits(*rounding, Parts{rounded, stride}, count, bank, next, rows);
      } else if (tiles[k]) {
        tiled_logits(*tiles[k], Rows{work_data, elements, count}, bank, next, rows);
      }
      for (int64_t j = 0; j < rows && !tiles[k]; j += blocks[k].size()) {
        const at::Tensor block = blocks[k].at(j);
        at::Tensor out = logits[k].narrow(1, j, block.size(0));
        at::mm_out(out, work, block.t());
      }
      at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          projection[i] += run.softmax(problem, static_cast<int64_t>(k), begin + i, next + i * rows,
                                       x0_scale[i], problem.normalize ? bank_scales[k].data() : nullptr);
        }
      });
      next += count * rows;
    }
    if (!problem.gradient) continue;

    if (problem.banks.empty()) work.zero_();
    for (size_t k = 0; k < problem.banks.size(); ++k) {
      const Matrix& bank = problem.banks[k].rows;
      if (tiles[k]) {
        const Rows coefficients = {logits[k].const_data_ptr<float>(), bank.rows, count};
        tiled_weighted_sums(*tiles[k], coefficients, bank, k > 0, work_data);
      }
      for (int64_t j = 0; j < bank.rows && !tiles[k]; j += blocks[k].size()) {
        const at::Tensor block = blocks[k].at(j);
        const bool first = k == 0 && j == 0;
        at::addmm_out(work, work, logits[k].narrow(1, j, block.size(0)), block, first ? 0 : 1);
      }
    }
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        run.finish(problem, begin + i, 0, elements, work_data + i * elements,
                   static_cast<float>(projection[i]));
      }
    });
  }
}

}  // namespace contrastive_i2v::cpu
