// The two matrix products of one slice of D. A slice is packed: its rows are kSlice floats, zeros where D
// ends.
#pragma once

#include <cstdint>

namespace contrastive_i2v::cpu {

constexpr int64_t kSlice = 256;

// out[i * n + j] = <a_i, b_j>
void dot_products(const float* a, int64_t m, const float* b, int64_t n, float* out);

// out_i = sum_j weights[i * n + j] * b_j
void weighted_sums(const float* weights, int64_t m, const float* b, int64_t n, float* out);

}  // namespace contrastive_i2v::cpu
