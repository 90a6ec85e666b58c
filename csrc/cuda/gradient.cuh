// Phase 4: the losses, and the gradient of this CTA's slice.
#pragma once

#include "cta.cuh"
#include "matrix.cuh"

namespace contrastive_i2v::cuda {

constexpr int kAhead = 4;     // coefficient blocks that a warp has in flight
constexpr int kMaxPairs = 4;  // see Plan::unit_pairs

template <typename T>
struct GradientOf {
  using type = float;
};
template <>
struct GradientOf<bfloat16> {
  using type = bfloat16;
};

template <typename T>
__device__ __forceinline__ void write_losses(const Cta<T>& cta) {
  double* means = reinterpret_cast<double*>(cta.scratch);
  for (int n = cta.warp; n <= cta.plan.banks; n += kWarps) {
    const float* weights = n == 0 ? cta.problem.mse_weights : cta.problem.contrastive_weights;
    double sum = 0;
    for (int i = cta.lane; i < cta.plan.queries; i += 32) {
      const double weight = weights == nullptr ? 1.0 : weights[i];
      sum += weight * load_fresh(cta.losses + i * (cta.plan.banks + 1) + n);
    }
    sum = sum_lanes(sum) / cta.plan.queries;
    if (cta.lane > 0) continue;
    means[n] = sum;
    *(n == 0 ? cta.problem.mse : cta.problem.contrastive + n - 1) = static_cast<float>(sum);
  }
  sync_threads();  // means: one a warp, added up by thread 0
  if (cta.thread > 0) return;
  double loss = means[0];
  for (int k = 0; k < cta.plan.banks; ++k) loss += cta.problem.banks[k].weight * means[1 + k];
  *cta.problem.loss = static_cast<float>(loss);
}

template <typename T>
__device__ __forceinline__ void write_gradient(const Cta<T>& cta) {
  const int width = 16 * cta.plan.unit_pairs;
  const int across = cta.plan.slice_width / width;
  const int units = cta.plan.block_rows / kGranule * across;
  for (int unit = cta.warp; unit < units; unit += kWarps) {
    const int row = unit / across * kGranule;
    if (row < cta.queries) write_gradient_unit(cta, row, unit % across * width);
  }
}

// The coefficients of 16 queries and of candidates `begin` to at most `end`.
template <typename T>
__device__ __forceinline__ void load_ahead(const Cta<T>& cta, typename Block<T>::A (&a)[kAhead], int row,
                                           int begin, int end) {
#pragma unroll
  for (int n = 0; n < kAhead; ++n) {
    const int candidate = begin + n * Block<T>::kDepth;
    if (candidate >= end) continue;
    Block<T>::load_coefficients(a[n], cta.coefficients, cta.plan.candidates, cta.first_query + row, candidate,
                                cta.lane);
  }
}

// Columns [column, column + 16 unit_pairs) of 16 queries, by one warp.
template <typename T>
__device__ __forceinline__ void write_gradient_unit(const Cta<T>& cta, int row, int column) {
  float gradient[kMaxPairs][2][4] = {};
  float projection[2] = {0.0f, 0.0f};
  int query[2];
  for (int h = 0; h < 2; ++h) query[h] = cta.first_query + min(row + cta.lane / 4 + 8 * h, cta.queries - 1);

  for (int k = 0; k < cta.plan.banks; ++k) {
    const Bank& bank = cta.problem.banks[k];
    const T* slice = cta.bank + bank.begin * cta.stride + column;
    float product[kMaxPairs][2][4] = {};
    const int padded = small::round_up(bank.count, kGranule);
    constexpr int step = kAhead * Block<T>::kDepth;
    typename Block<T>::A now[kAhead], next[kAhead];
    load_ahead(cta, next, row, bank.begin, bank.begin + padded);
    for (int j = 0; j < padded; j += step) {
#pragma unroll
      for (int n = 0; n < kAhead; ++n) now[n] = next[n];
      load_ahead(cta, next, row, bank.begin + j + step, bank.begin + padded);
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        const int candidate = j + n * Block<T>::kDepth;
        if (candidate >= padded) continue;
#pragma unroll
        for (int p = 0; p < kMaxPairs; ++p) {
          if (p >= cta.plan.unit_pairs) continue;
          typename Block<T>::B b;
          Block<T>::load_b_transposed(b, slice + candidate * cta.stride + 16 * p, cta.stride, cta.lane);
          Block<T>::multiply(product[p], now[n], b);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int4 raw =
          load_fresh(reinterpret_cast<const int4*>(cta.bank_terms + query[h] * cta.plan.banks + k));
      BankTerm term;
      memcpy(&term, &raw, sizeof(term));
      projection[h] += term.projection;
      const T* positive = slice + term.positive * cta.stride + cta.lane % 4 * 2;
#pragma unroll
      for (int e = 0; e < kMaxPairs * 2; ++e) {
        const int p = e / 2, n = e % 2;
        if (p >= cta.plan.unit_pairs) continue;
        const float2 z = load_pair(positive + 16 * p + 8 * n);
        float* sum = gradient[p][n] + 2 * h;
        const float* product_of = product[p][n] + 2 * h;
        sum[0] += term.factor * (product_of[0] - term.positive_weight * z.x);
        sum[1] += term.factor * (product_of[1] - term.positive_weight * z.y);
      }
    }
  }

  using G = typename GradientOf<T>::type;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int local = row + cta.lane / 4 + 8 * h;
    if (local >= cta.queries) continue;
    const float scale = load_fresh(cta.mse_scales + query[h]);
    G* to = static_cast<G*>(cta.problem.gradient) + static_cast<int64_t>(query[h]) * cta.plan.elements +
            cta.first_element;
#pragma unroll
    for (int e = 0; e < kMaxPairs * 2; ++e) {
      const int p = e / 2, n = e % 2;
      const int d = column + 16 * p + 8 * n + cta.lane % 4 * 2;
      if (p >= cta.plan.unit_pairs || cta.first_element + d >= cta.plan.elements) continue;
      const int at = local * cta.stride + d;
      const float2 f = load_pair(cta.prediction + at), y = load_pair(cta.target + at),
                   x0 = load_pair(cta.x0 + at);
      const float* contrastive = gradient[p][n] + 2 * h;
      const Pair<G> pair = {from_float<G>(scale * (f.x - y.x) + (contrastive[0] - projection[h] * x0.x)),
                            from_float<G>(scale * (f.y - y.y) + (contrastive[1] - projection[h] * x0.y))};
      if (cta.problem.aligned) {  // then D is even
        *reinterpret_cast<Pair<G>*>(to + d) = pair;
      } else {
        to[d] = pair.element[0];
        if (cta.first_element + d + 1 < cta.plan.elements) to[d + 1] = pair.element[1];
      }
    }
  }
}

}  // namespace contrastive_i2v::cuda
