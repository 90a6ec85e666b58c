// What every CPU kernel of the loss reads and writes: plain pointers and sizes, checked and owned by the
// caller.
#pragma once

#include <c10/core/ScalarType.h>

#include <cmath>
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
  Matrix prediction, noisy, target;            // [B, D], of one dtype
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

  int64_t candidates() const {
    int64_t sum = 0;
    for (const Bank& bank : banks) sum += bank.rows.rows;
    return sum;
  }
};

// 1/|row| from its squared norm; 0 for a zero row, which then has cosine 0 and no gradient. NaN stays NaN.
inline double inverse_norm(double squared) { return squared == 0 ? 0.0 : 1 / std::sqrt(squared); }

// Small: one pass over slices of D, everything in cache. Bitwise the same for any number of threads.
bool fits_fused(const Problem& problem);
void run_fused(const Problem& problem);

// Large: the library's matrix product over strips of queries. Needs at most a few strips of memory.
void run_strips(const Problem& problem);

}  // namespace contrastive_i2v::cpu
