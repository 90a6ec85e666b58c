// What the single launch reads and writes: plain pointers and sizes, no header of CUDA's or torch's.
#pragma once

#include <stdint.h>

#include <initializer_list>

#include "../common/plan.h"

namespace contrastive_i2v::cuda {

struct Bank {
  const void* rows = nullptr;          // [count, D]
  const int64_t* positives = nullptr;  // [B], or null for the identity
  const int64_t* groups = nullptr;     // [count], or null
  double weight = 0;                   // lambda
  int count = 0;
  int begin = 0;  // its first row among the padded candidates
};

struct Problem {
  const void* prediction = nullptr;  // [B, D], and so are noisy and target
  const void* noisy = nullptr;
  const void* target = nullptr;
  const float* c_skip = nullptr;               // [B]
  const float* c_out = nullptr;                // [B]
  const float* mse_weights = nullptr;          // [B], or null for ones
  const float* contrastive_weights = nullptr;  // [B], or null for ones
  const int64_t* query_groups = nullptr;       // [B], or null
  const float* temperature_tensor = nullptr;   // [], beats `temperature`
  double temperature = 1;
  bool normalize = false;
  bool aligned = false;  // every row of every latent starts at a multiple of 16 bytes
  Bank banks[small::kMaxBanks];

  void* gradient = nullptr;      // [B, D], bfloat16 for bfloat16 latents and else float; or null
  float* loss = nullptr;         // []
  float* mse = nullptr;          // []
  float* contrastive = nullptr;  // [K]
  char* workspace = nullptr;     // plan.workspace.bytes of any content, aligned to 256
  small::Plan plan;
};

// Where each bank begins among the padded candidates; returns how many of those there are.
inline int64_t place_banks(Problem& problem, int banks) {
  int64_t begin = 0;
  for (int k = 0; k < banks; ++k) {
    problem.banks[k].begin = static_cast<int>(begin);
    begin += small::round_up(problem.banks[k].count, small::kGranule);
  }
  return begin;
}

inline bool rows_are_aligned(const Problem& problem, int banks, int64_t elements, int element_size) {
  uintptr_t bits = static_cast<uintptr_t>(elements * element_size);
  for (const void* p : {problem.prediction, problem.noisy, problem.target})
    bits |= reinterpret_cast<uintptr_t>(p);
  for (int k = 0; k < banks; ++k) bits |= reinterpret_cast<uintptr_t>(problem.banks[k].rows);
  return bits % 16 == 0;
}

}  // namespace contrastive_i2v::cuda
