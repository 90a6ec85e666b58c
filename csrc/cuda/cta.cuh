// What every phase of the kernel knows: which part of the problem its CTA holds, and where things lie.
// Include chip.cuh, or what stands in for it, first.
#pragma once

#include <string.h>

#include "../common/softmax.h"
#include "problem.h"

namespace contrastive_i2v::cuda {

using small::kGranule;
using small::kThreads;
using small::kTile;
using small::kWarps;
using small::Plan;

// 16 bytes of elements.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T element[kSize];
};

// Two neighbouring elements, the first at an even place.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T element[2];
};

template <typename T>
__device__ __forceinline__ float2 load_pair(const T* at) {
  const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(at);
  return make_float2(to_float(pair.element[0]), to_float(pair.element[1]));
}

// Sum over aligned groups of `lanes` lanes (a power of two) in a fixed order; every lane gets it.
template <typename V>
__device__ __forceinline__ V sum_lanes(V value, int lanes = 32) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += shuffle_xor(value, offset);
  return value;
}

// Merges a struct of two floats over the warp in the same order.
template <typename S>
__device__ __forceinline__ S merge_lanes(S value) {
  static_assert(sizeof(S) == 2 * sizeof(float));
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    float part[2];
    memcpy(part, &value, sizeof(S));
    for (float& one : part) one = shuffle_xor(one, offset);
    S other;
    memcpy(&other, part, sizeof(S));
    value.merge(other);
  }
  return value;
}

template <typename T>
struct Cta {
  static constexpr int kVector = Vector<T>::kSize;

  __device__ Cta(const Problem& problem, char* shared)
      : problem(problem),
        plan(problem.plan),
        thread(thread_index()),
        lane(thread_index() % 32),
        warp(thread_index() / 32),
        block(block_index() / plan.slices),
        split(block_index() % plan.slices / plan.cluster),
        rank(block_index() % plan.cluster),
        first_query(block * plan.block_rows),
        queries(min(plan.block_rows, plan.queries - first_query)),
        first_element(block_index() % plan.slices * plan.slice_width),
        stride(plan.stride()),
        prediction(reinterpret_cast<T*>(shared + plan.shared.prediction)),
        x0(reinterpret_cast<T*>(shared + plan.shared.x0)),
        target(reinterpret_cast<T*>(shared + plan.shared.target)),
        bank(reinterpret_cast<T*>(shared + plan.shared.bank)),
        row_error(reinterpret_cast<float*>(shared + plan.shared.row_error)),
        row_norm(reinterpret_cast<float*>(shared + plan.shared.row_norm)),
        bank_norm(reinterpret_cast<float*>(shared + plan.shared.bank_norm)),
        scratch(shared + plan.shared.scratch),
        partials(reinterpret_cast<float*>(problem.workspace + plan.workspace.partials)),
        mse_scales(reinterpret_cast<float*>(problem.workspace + plan.workspace.mse_scales)),
        bank_terms(reinterpret_cast<BankTerm*>(problem.workspace + plan.workspace.bank_terms)),
        losses(reinterpret_cast<float*>(problem.workspace + plan.workspace.losses)),
        coefficients(reinterpret_cast<T*>(problem.workspace + plan.workspace.coefficients)) {
    if (plan.one_barrier) {  // this cluster's own copy
      const size_t rows = static_cast<size_t>(split) * plan.padded_queries();
      mse_scales += rows;
      bank_terms += rows * plan.banks;
      losses += rows * (plan.banks + 1);
      coefficients += rows * plan.candidates;
    }
  }

  const Problem& problem;
  const Plan& plan;
  const int thread, lane, warp;
  const int block, split, rank;
  const int first_query, queries, first_element;
  const int stride;
  T *const prediction, *const x0, *const target, *const bank;
  float *const row_error, *const row_norm, *const bank_norm;
  char* const scratch;
  float* const partials;
  float* mse_scales;
  BankTerm* bank_terms;
  float* losses;
  T* coefficients;
};

}  // namespace contrastive_i2v::cuda
