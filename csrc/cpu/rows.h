// The arithmetic of one query: its softmax over one bank, and the few loops over D that surround it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "problem.h"

namespace contrastive_i2v::cpu {

constexpr float kLogSmallest = -87.3365f;  // of the smallest normal float

// 1/|row| from its squared norm; 0 for a zero row, which then has cosine 0 and no gradient. NaN stays NaN.
inline double inverse_norm(double squared) { return squared == 0 ? 0.0 : 1 / std::sqrt(squared); }

// Turns a query's dot products with a bank, in place, into the coefficients c_j of this bank's share of
// dloss/dF, `sum_j c_j z_j - projection * x0`, writes its cross entropy, and returns the projection (0
// without normalisation). Every logit, the positive's too, comes from this one row, so the loss is never
// negative. Factors of the whole row are rounded to float once: an error in them does not average out over D.
inline double softmax_row(const Problem& problem, int64_t k, int64_t i, float* row, double x0_scale,
                          const float* bank_scale) {
  const Bank& bank = problem.banks[k];
  const int64_t n = bank.rows.rows;
  const double exact_scale = x0_scale / problem.temperature;
  const float scale = static_cast<float>(exact_scale);
  const int64_t positive = bank.positives ? bank.positives[i] : i;

  float poison = 0;  // NaN once any logit is NaN or infinite, whatever the softmax would make of it
  for (int64_t j = 0; j < n; ++j) {
    row[j] *= bank_scale ? scale * bank_scale[j] : scale;
    poison += 0 * row[j];
  }
  float& cross_entropy = problem.cross_entropy[k * problem.queries + i];
  if (positive < 0) {
    std::fill(row, row + n, 0.0f);
    cross_entropy = poison;
    return 0;
  }

  const float positive_logit = row[positive];
  if (problem.query_groups && bank.groups) {
    for (int64_t j = 0; j < n; ++j) {
      if (bank.groups[j] == problem.query_groups[i] && j != positive) {
        row[j] = std::numeric_limits<float>::lowest();  // finite, so that 0 * it stays 0 below
      }
    }
  }
  const float maximum = *std::max_element(row, row + n);
  double rest = 0, weighted = 0;  // sums over all candidates but the positive
  row[positive] = std::numeric_limits<float>::lowest();
  for (int64_t j = 0; j < n; ++j) {
    const float distance = row[j] - positive_logit;
    const float exponent = row[j] - maximum;
    // Subnormal weights cannot move a sum that holds a 1, but every product with one is a hundred times
    // slower.
    row[j] = j == positive || exponent < kLogSmallest ? 0.0f : std::exp(exponent);
    rest += row[j];
    if (bank_scale) weighted += row[j] == 0 ? 0.0f : row[j] * distance;
  }
  const double total = rest + std::exp(positive_logit - maximum);
  cross_entropy =
      poison + static_cast<float>(positive_logit == maximum ? std::log1p(rest)
                                                            : maximum - positive_logit + std::log(total));
  if (!problem.gradient) return 0;

  // p - y, where 1 - p of the positive is the sum of the others: no cancellation when the softmax saturates.
  const double weight = bank.weight * problem.contrastive_weights[i] * problem.c_out[i] / problem.queries;
  const float factor = static_cast<float>(weight * exact_scale / total);
  const float positive_factor = static_cast<float>(-rest * weight * exact_scale / total);
  for (int64_t j = 0; j < n; ++j) {
    const float coefficient = row[j] * (bank_scale ? factor * bank_scale[j] : factor);
    row[j] = std::abs(coefficient) < std::numeric_limits<float>::min() ? 0.0f : coefficient;
  }
  row[positive] = bank_scale ? positive_factor * bank_scale[positive] : positive_factor;
  return bank_scale ? weight * weighted / total * x0_scale * x0_scale : 0;
}

// sum_d term(d) in a fixed order that vectorises: 16 float sums side by side, added up in double.
template <typename Term>
double sum_over(int64_t count, const Term& term) {
  constexpr int64_t lanes = 16;
  float lane[lanes] = {};
  int64_t d = 0;
  for (; d + lanes <= count; d += lanes) {
    for (int64_t l = 0; l < lanes; ++l) lane[l] += term(d + l);
  }
  double sum = 0;
  for (; d < count; ++d) sum += term(d);
  for (int64_t l = 0; l < lanes; ++l) sum += lane[l];
  return sum;
}

inline double squared_norm(const float* row, int64_t count) {
  return sum_over(count, [&](int64_t d) { return row[d] * row[d]; });
}

struct RowSums {
  double squared_error;  // sum (F - target)^2
  double squared_norm;   // sum x0^2, only where it is needed
};

// x0 = c_skip * x_t + c_out * F over columns [begin, begin + count) of row i. `scratch` holds 3 * count
// floats.
inline RowSums reconstruct(const Problem& problem, int64_t i, int64_t begin, int64_t count, float* x0,
                           float* scratch) {
  const float* f = problem.prediction.read(i, begin, count, scratch);
  const float* x = problem.noisy.read(i, begin, count, scratch + count);
  const float* y = problem.target.read(i, begin, count, scratch + 2 * count);
  const float skip = problem.c_skip[i], out = problem.c_out[i];
  for (int64_t d = 0; d < count; ++d) x0[d] = skip * x[d] + out * f[d];
  return {sum_over(count, [&](int64_t d) { return (f[d] - y[d]) * (f[d] - y[d]); }),
          problem.normalize ? squared_norm(x0, count) : 0};
}

template <typename T>
void write_gradient(const Problem& problem, int64_t i, int64_t begin, int64_t count, const float* contrastive,
                    const float* x0, float projection, float* scratch) {
  const float* f = problem.prediction.read(i, begin, count, scratch);
  const float* y = problem.target.read(i, begin, count, scratch + count);
  const double exact_scale =
      2.0 * problem.mse_weights[i] / (static_cast<double>(problem.elements) * problem.queries);
  const float mse_scale = static_cast<float>(exact_scale);
  T* to = static_cast<T*>(problem.gradient) + i * problem.elements + begin;
  for (int64_t d = 0; d < count; ++d) {
    to[d] = static_cast<T>(mse_scale * (f[d] - y[d]) + (contrastive[d] - projection * x0[d]));
  }
}

// dloss/dF over columns [begin, begin + count) of row i. `scratch` holds 2 * count floats.
inline void finish(const Problem& problem, int64_t i, int64_t begin, int64_t count, const float* contrastive,
                   const float* x0, float projection, float* scratch) {
  if (problem.gradient_dtype == c10::kBFloat16) {
    write_gradient<c10::BFloat16>(problem, i, begin, count, contrastive, x0, projection, scratch);
  } else {
    write_gradient<float>(problem, i, begin, count, contrastive, x0, projection, scratch);
  }
}

}  // namespace contrastive_i2v::cpu
