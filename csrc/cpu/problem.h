// What every CPU kernel of the loss reads and writes: plain pointers and sizes, checked and owned by the
// caller.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <vector>

namespace contrastive_i2v::cpu {

// A contiguous matrix of float, bfloat16 or half that is only ever read as float.
struct Matrix {
  const void* data = nullptr;
  c10::ScalarType dtype = c10::kFloat;
  int64_t rows = 0;
  int64_t columns = 0;

  bool is_float() const { return dtype == c10::kFloat; }

  // Elements [begin, begin + count) of a row as float: in place where they already are, else through
  // `scratch`.
  const float* read(int64_t row, int64_t begin, int64_t count, float* scratch) const {
    const int64_t at = row * columns + begin;
    switch (dtype) {
      case c10::kBFloat16:
        return convert(static_cast<const c10::BFloat16*>(data) + at, count, scratch);
      case c10::kHalf:
        return convert(static_cast<const c10::Half*>(data) + at, count, scratch);
      default:
        return static_cast<const float*>(data) + at;
    }
  }

 private:
  template <typename T>
  static const float* convert(const T* from, int64_t count, float* to) {
    for (int64_t d = 0; d < count; ++d) to[d] = static_cast<float>(from[d]);
    return to;
  }
};

struct Bank {
  Matrix rows;                         // [N, D]
  const int64_t* positives = nullptr;  // [B], or null for the identity
  const int64_t* groups = nullptr;     // [N], or null
  double weight = 0;                   // lambda
};

struct Problem {
  int64_t queries = 0;                         // B
  int64_t elements = 0;                        // D
  Matrix prediction, noisy, target;            // [B, D]
  const float* c_skip = nullptr;               // [B], bounded when `normalize`
  const float* c_out = nullptr;                // [B]
  const float* mse_weights = nullptr;          // [B]
  const float* contrastive_weights = nullptr;  // [B]
  const int64_t* query_groups = nullptr;       // [B], or null
  std::vector<Bank> banks;
  double temperature = 1;
  bool normalize = false;

  // Results: mse [B]; cross_entropy [K][B]; gradient [B, D] of gradient_dtype, or null.
  float* mse = nullptr;
  float* cross_entropy = nullptr;
  void* gradient = nullptr;
  c10::ScalarType gradient_dtype = c10::kFloat;
};

// Small: one pass over slices of D, everything in cache. Bitwise the same for any number of threads.
bool fits_fused(const Problem& problem);
void run_fused(const Problem& problem);

// Large: the library's matrix product over strips of queries. Needs at most a few strips of memory.
void run_strips(const Problem& problem);

}  // namespace contrastive_i2v::cpu
