// How the small regime's single launch cuts a problem, where it keeps things, and whether it fits a device.
//
// Queries are cut into `row_blocks`, D into `slices`; one CTA holds one slice of one block. `cluster`
// neighbouring slices share their rows through distributed shared memory, so partial dot products leave the
// chip's shared memory once a cluster: `splits` of them add up to a dot product.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "host_device.h"

namespace contrastive_i2v::small {

constexpr int kMaxBanks = 8;
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 128;    // queries and candidates of one product tile
constexpr int kGranule = 16;  // queries, candidates and columns are padded to this

struct Limits {
  int shared_bytes = 0;        // a CTA may use
  int ctas[4] = {0, 0, 0, 0};  // that run at the same time in clusters of 1, 2, 4, 8; 0: not possible
};

// Byte offsets into a CTA's shared memory.
struct SharedLayout {
  int prediction, x0, target, bank, row_error, row_norm, bank_norm, scratch, bytes;
};

// Byte offsets into the workspace in device memory.
struct WorkspaceLayout {
  size_t partials, coefficients, mse_scales, bank_terms, losses, bytes;
};

struct Plan {
  int queries = 0, candidates = 0, elements = 0;  // B, sum of the banks' padded rows, D
  int banks = 0;
  int element_size = 4;
  int row_blocks = 0, block_rows = 0;
  int slices = 0, slice_width = 0;
  int cluster = 1, splits = 0;
  int columns = 0;           // candidates that one CTA of a cluster multiplies
  int unit_pairs = 1;        // gradient columns that a warp takes at a time, in 16s
  bool one_barrier = false;  // every cluster repeats the softmax instead of waiting for a share of it
  SharedLayout shared{};
  WorkspaceLayout workspace{};

  CI2V_HOST_DEVICE int ctas() const { return row_blocks * slices; }
  CI2V_HOST_DEVICE bool fits() const { return row_blocks > 0; }
  // Elements from one row of a slice to the next: an odd number of 16-byte words, so that eight rows of a
  // matrix instruction hit eight different groups of banks.
  CI2V_HOST_DEVICE int stride() const { return slice_width + 16 / element_size; }
  // Floats from one row of partial dot products to the next. After the candidates come |x0|^2 and |F - y|^2.
  CI2V_HOST_DEVICE int partial_stride() const { return candidates + 4; }
  // Row `block_rows` of a block's partials holds the candidates' |z|^2.
  CI2V_HOST_DEVICE size_t partial_row(int block, int split, int row) const {
    return ((static_cast<size_t>(block) * splits + split) * (block_rows + 1) + row) * partial_stride();
  }
  CI2V_HOST_DEVICE int copies() const { return one_barrier ? splits : 1; }
  CI2V_HOST_DEVICE int padded_queries() const { return row_blocks * block_rows; }
  // Where the coefficient of (query, candidate) lies. 16-bit ones lie as the matrix instruction wants them:
  // 16 x 16 tiles in which the 8 elements of a lane are neighbours, so that a lane loads 16 bytes.
  CI2V_HOST_DEVICE size_t coefficient_index(int query, int candidate) const {
    if (element_size == 4) return static_cast<size_t>(query) * candidates + candidate;
    const int row = query % 16, column = candidate % 16;
    const int lane = (row % 8) * 4 + (column % 8) / 2;
    const int element = (column / 8) * 4 + (row / 8) * 2 + column % 2;
    const size_t tile = static_cast<size_t>(query / 16) * (candidates / 16) + candidate / 16;
    return tile * 256 + lane * 8 + element;
  }
};

CI2V_HOST_DEVICE int divide_up(int a, int b) { return (a + b - 1) / b; }
CI2V_HOST_DEVICE int round_up(int a, int b) { return divide_up(a, b) * b; }
CI2V_HOST_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

inline SharedLayout shared_layout(const Plan& plan) {
  const int row = plan.stride() * plan.element_size;
  SharedLayout at{};
  int end = 0;
  const auto take = [&end](int bytes) {
    const int begin = end;
    end += round_up(bytes, 128);
    return begin;
  };
  at.prediction = take(plan.block_rows * row);
  at.x0 = take(plan.block_rows * row);
  at.target = take(plan.block_rows * row);
  at.bank = take(plan.candidates * row);
  at.row_error = take(plan.block_rows * 4);
  at.row_norm = take(plan.block_rows * 4);
  at.bank_norm = take(plan.candidates * 4);
  // In turn: a neighbour's rows; the rows of a warp's softmax with the banks' scales.
  const int staged =
      plan.cluster == 1 ? 0 : (smaller(plan.block_rows, kTile) + smaller(plan.columns, kTile)) * row;
  const int softmax = (kWarps * plan.partial_stride() + plan.candidates) * 4;
  at.scratch = take(staged > softmax ? staged : softmax);
  at.bytes = end;
  return at;
}

inline WorkspaceLayout workspace_layout(const Plan& plan) {
  WorkspaceLayout at{};
  size_t end = 0;
  const auto take = [&end](size_t bytes) {
    const size_t begin = end;
    end += (bytes + 255) / 256 * 256;
    return begin;
  };
  const size_t copies = plan.copies(), queries = plan.padded_queries(), banks = plan.banks;
  at.partials = take(plan.partial_row(plan.row_blocks, 0, 0) * 4);
  at.coefficients = take(copies * queries * plan.candidates * plan.element_size);
  at.mse_scales = take(copies * queries * 4);
  at.bank_terms = take(copies * queries * banks * 16);
  at.losses = take(copies * queries * (banks + 1) * 4);
  at.bytes = end;
  return at;
}

// Bytes that cross the edge of one SM, its share of what is not spread evenly included: the time of the
// launch but for its latencies. A barrier is worth what an SM moves meanwhile.
inline double cost(const Plan& plan) {
  constexpr double barrier = 48 * 1024;
  const double rows = plan.block_rows, all = plan.candidates;
  const double row_bytes = static_cast<double>(plan.slice_width) * plan.element_size;
  const double chunks = divide_up(plan.columns, kTile);
  const double load = (3 * rows + all) * row_bytes;
  const double exchange = (chunks * rows + plan.columns) * row_bytes * (plan.cluster - 1);
  const double write = rows * plan.columns * 4;
  const double shared_rows = divide_up(plan.queries, plan.one_barrier ? plan.cluster : plan.ctas());
  const double reduce = shared_rows * all * 4 * plan.splits;
  const double coefficients = rows * all * plan.element_size;
  return load + exchange + write + reduce + coefficients + (plan.one_barrier ? 0 : barrier);
}

// The cheapest plan that fits, or one for which `fits()` is false. `candidates` is the sum of the banks'
// rows, each rounded up to kGranule.
inline Plan make_plan(int64_t queries, int64_t candidates, int64_t elements, int banks, int element_size,
                      const Limits& limits) {
  Plan best;
  if (queries < 1 || queries > 4096 || candidates > 8192 || elements > (1 << 20) || banks > kMaxBanks)
    return best;
  double best_cost = 0;
  for (const int width : {32, 64, 128, 256}) {
    if (width * element_size > 32 * 16) continue;  // a row of a slice is at most 16 bytes a lane
    for (int power = 0; power < 4; ++power) {
      const int cluster = 1 << power;
      const int slices = round_up(divide_up(static_cast<int>(elements), width), cluster);
      for (int row_blocks = 1; row_blocks <= 8; row_blocks *= 2) {
        Plan plan;
        plan.queries = static_cast<int>(queries);
        plan.candidates = static_cast<int>(candidates);
        plan.elements = static_cast<int>(elements);
        plan.banks = banks;
        plan.element_size = element_size;
        plan.row_blocks = row_blocks;
        plan.block_rows = round_up(divide_up(plan.queries, row_blocks), kGranule);
        if ((row_blocks - 1) * plan.block_rows >= plan.queries && row_blocks > 1) continue;  // an idle block
        plan.slices = slices;
        plan.slice_width = width;
        plan.cluster = cluster;
        plan.splits = slices / cluster;
        plan.columns = round_up(divide_up(plan.candidates, cluster), kGranule);
        const int tiles = plan.block_rows / 16;
        plan.unit_pairs = smaller(width / 16, 4);
        while (plan.unit_pairs > 1 && tiles * (width / 16 / plan.unit_pairs) < kWarps) plan.unit_pairs /= 2;
        plan.shared = shared_layout(plan);
        if (plan.ctas() > limits.ctas[power] || plan.shared.bytes > limits.shared_bytes) continue;
        for (const bool one_barrier : {true, false}) {
          plan.one_barrier = one_barrier;
          if (one_barrier && row_blocks > 1) continue;  // a cluster only knows its own block's dot products
          const double bytes = cost(plan);
          if (!best.fits() || bytes < best_cost) {
            best = plan;
            best_cost = bytes;
          }
        }
      }
    }
  }
  if (best.fits()) best.workspace = workspace_layout(best);
  return best;
}

}  // namespace contrastive_i2v::small
