// Phase 3: the softmax of whole queries. A warp takes one; kWarps at a time are summed by the whole CTA.
#pragma once

#include "../common/latents.h"
#include "cta.cuh"

namespace contrastive_i2v::cuda {

template <typename T>
__device__ __forceinline__ void write_rows(const Cta<T>& cta) {
  float* rows = reinterpret_cast<float*>(cta.scratch);
  float* bank_scale = rows + kWarps * cta.plan.partial_stride();
  const size_t between_splits = cta.plan.partial_row(0, 1, 0);
  if (cta.problem.normalize) {
    const float* norms =
        cta.partials + cta.plan.partial_row(0, 0, cta.plan.block_rows);  // the same in every block
    for (int j = cta.thread; j < cta.plan.candidates; j += kThreads) {
      float sum = 0;
      for (int s = 0; s < cta.plan.splits; ++s) sum += load_fresh(norms + s * between_splits + j);
      bank_scale[j] = inverse_norm(sum);
    }
  }
  const int first = cta.plan.one_barrier ? cta.rank : block_index();
  const int step = cta.plan.one_barrier ? cta.plan.cluster : cta.plan.ctas();
  const int vectors = cta.plan.partial_stride() / 4;
  for (int begin = first; begin < cta.plan.queries; begin += kWarps * step) {
    for (int n = cta.thread; n < kWarps * vectors; n += kThreads) {
      const int query = begin + n / vectors * step;
      if (query >= cta.plan.queries) break;
      const size_t at = cta.plan.partial_row(query / cta.plan.block_rows, 0, query % cta.plan.block_rows);
      const auto* from = reinterpret_cast<const float4*>(cta.partials + at) + n % vectors;
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
      for (int s = 0; s < cta.plan.splits; ++s) {
        const float4 part = load_fresh(from + s * between_splits / 4);
        sum.x += part.x;
        sum.y += part.y;
        sum.z += part.z;
        sum.w += part.w;
      }
      reinterpret_cast<float4*>(rows)[n] = sum;
    }
    sync_threads();  // bank_scale and the rows: summed by all threads, read by the warp of the query
    const int query = begin + cta.warp * step;
    if (query < cta.plan.queries)
      write_row(cta, query, rows + cta.warp * cta.plan.partial_stride(), bank_scale);
    sync_threads();  // the rows are free again
  }
}

template <typename T>
__device__ __forceinline__ void write_row(const Cta<T>& cta, int query, float* row, const float* bank_scale) {
  const float c_out = cta.problem.c_out[query];
  const StoredCoefficients c = stored_coefficients(cta.problem.c_skip[query], c_out, cta.problem.normalize);
  const auto weight_of = [query](const float* weights) { return weights == nullptr ? 1.0f : weights[query]; };
  RowScales scales;
  scales.x0 = cta.problem.normalize ? inverse_norm(row[cta.plan.candidates]) : 1.0f;
  scales.tau = checked_temperature(
      cta.problem.temperature_tensor == nullptr ? cta.problem.temperature : *cta.problem.temperature_tensor);
  scales.query = static_cast<double>(weight_of(cta.problem.contrastive_weights)) *
                 (cta.problem.normalize ? c.out : c_out) / cta.plan.queries;

  float* losses = cta.losses + query * (cta.plan.banks + 1);
  if (cta.lane == 0) {
    losses[0] = row[cta.plan.candidates + 1] / cta.plan.elements;
    cta.mse_scales[query] =
        mse_scale(weight_of(cta.problem.mse_weights), cta.plan.queries, cta.plan.elements);
  }
  for (int k = 0; k < cta.plan.banks; ++k) {
    const Bank& bank = cta.problem.banks[k];
    const int64_t positive = bank.positives == nullptr ? query : bank.positives[query];
    const bool has_positive = positive >= 0 && positive < bank.count;
    SoftmaxRow softmax;
    softmax.logits = row + bank.begin;
    softmax.bank_scale = cta.problem.normalize ? bank_scale + bank.begin : nullptr;
    softmax.groups = cta.problem.query_groups == nullptr ? nullptr : bank.groups;
    softmax.query_group = cta.problem.query_groups == nullptr ? 0 : cta.problem.query_groups[query];
    softmax.count = bank.count;
    softmax.positive = has_positive ? static_cast<int>(positive) : -1;
    softmax.scale = logit_scale(c.unscale, scales);

    const Maximum maximum = merge_lanes(find_maximum(softmax, cta.lane, 32));
    sync_warp();  // logits: a lane reads the positive's, which another has written
    BankTerm term{0.0f, 0.0f, 0, 0.0f};
    float loss = positive == -1 ? maximum.poison : NAN;
    if (has_positive) {
      const float positive_logit = softmax.logits[softmax.positive];
      const Others others = merge_lanes(sum_others(softmax, maximum.others, cta.lane, 32));
      loss = maximum.poison + cross_entropy(positive_logit, maximum.others, others.rest);
      if (cta.problem.gradient != nullptr) {
        const Coefficients written = merge_lanes(write_coefficients(
            softmax, maximum.others, others.largest, positive_logit, cta.lane, 32, [&](int j, float value) {
              const T rounded = from_float<T>(value);
              cta.coefficients[cta.plan.coefficient_index(query, bank.begin + j)] = rounded;
              return to_float(rounded);
            }));
        term = finish_row(softmax, scales, bank.weight, maximum, others, written);
      }
    }
    if (cta.lane == 0) {
      losses[1 + k] = loss;
      cta.bank_terms[query * cta.plan.banks + k] = term;
    }
    const int zeros = has_positive ? bank.count : 0;
    for (int j = zeros + cta.lane; j < small::round_up(bank.count, kGranule); j += 32) {
      cta.coefficients[cta.plan.coefficient_index(query, bank.begin + j)] = from_float<T>(0.0f);
    }
  }
}

}  // namespace contrastive_i2v::cuda
