// Another body for csrc/cuda/chip.cuh: every thread of a grid is a fiber of one CPU thread, and what a warp,
// a CTA, a cluster or the grid does together is a meeting of fibers. So the kernel itself runs here, with its
// own indices, barriers and order of sums.
//
// It is harsher than a GPU where it can be: memory starts as NaN, asynchronous copies land no sooner than
// they are waited for, fibers run in any order that the test picks, lanes that meet in different instructions
// are an error, and so is a meeting that somebody never comes to.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <vector>

#define __device__
#define __forceinline__ inline

using std::max;
using std::min;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulated {

struct Meeting {
  int expected = 0;
  int arrived = 0;
  unsigned generation = 0;
};

struct Warp {
  Meeting meeting;
  const char* what = nullptr;
  void* given[32] = {};
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  int index = 0;
  int block = 0;
  Warp* warp = nullptr;
  const Meeting* waits_for = nullptr;
  unsigned generation = 0;
  bool done = false;
  std::vector<Copy> copies;

  bool can_run() const { return !done && (waits_for == nullptr || waits_for->generation != generation); }
};

struct Grid {
  std::vector<Meeting> blocks, clusters;
  Meeting all;
  std::vector<char*> shared;
  size_t shared_bytes = 0;
};

extern Grid grid;
extern Thread* current;
void switch_to_scheduler();

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "emulated chip: block %d, thread %d: %s\n", current->block, current->index, what);
  abort();
}

// Returns once all have come. The last to come does `together` first.
inline void meet(Meeting& meeting, const std::function<void()>& together = nullptr) {
  if (++meeting.arrived == meeting.expected) {
    if (together) together();
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  current->waits_for = &meeting;
  current->generation = meeting.generation;
  switch_to_scheduler();
  current->waits_for = nullptr;
}

// The 32 lanes give a pointer each to what they bring and take away; the last does the work for all.
template <typename Work>
void with_warp(const char* what, void* mine, const Work& work) {
  Warp& warp = *current->warp;
  if (warp.meeting.arrived > 0 && strcmp(warp.what, what) != 0)
    fail("lanes of a warp are in different instructions");
  warp.what = what;
  warp.given[current->index % 32] = mine;
  meet(warp.meeting, [&] { work(warp.given); });
}

inline void check_shared(const void* p, size_t bytes) {
  const char* base = grid.shared[current->block];
  const char* at = static_cast<const char*>(p);
  if (at < base || at + bytes > base + grid.shared_bytes)
    fail("an address is not in this CTA's shared memory");
}

inline void check_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) fail("an address is not a multiple of 16");
}

inline uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

}  // namespace emulated

namespace contrastive_i2v::cuda {

struct bfloat16 {
  uint16_t bits = 0;
};
struct half {
  uint16_t bits = 0;
};

inline float to_float(float v) { return v; }
inline float to_float(bfloat16 v) { return emulated::float_of(static_cast<uint32_t>(v.bits) << 16); }
inline float to_float(half v) {
  const float sign = v.bits >> 15 ? -1.0f : 1.0f;
  const int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign *
         (exponent ? ldexpf(static_cast<float>(fraction + 1024), exponent - 25) : ldexpf(fraction, -24));
}

template <typename T>
T from_float(float v);
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline bfloat16 from_float<bfloat16>(float v) {
  if (isnan(v)) return {0x7fff};
  const uint32_t bits = emulated::bits_of(v);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline half from_float<half>(float v) {
  const uint16_t sign = signbit(v) ? 0x8000 : 0;
  if (isnan(v)) return {0x7fff};
  const float size = fabsf(v);
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent = 0;
  frexpf(size == 0 ? 1e-9f : size, &exponent);  // size < 2^exponent
  const int step = std::max(exponent - 11, -24);
  const float units = nearbyintf(ldexpf(size, -step));  // to even; at most 2048
  const int base = step == -24 ? 0 : (step + 24) << 10;
  return {static_cast<uint16_t>(sign | (base + static_cast<int>(units)))};
}

inline int thread_index() { return emulated::current->index; }
inline int block_index() { return emulated::current->block; }

inline void copy_async(void* to, const void* from, int bytes) {
  emulated::check_shared(to, 16);
  emulated::check_aligned(to);
  emulated::check_aligned(from);
  emulated::current->copies.push_back({to, from, bytes});
}

inline void wait_for_copies() {
  for (const auto& copy : emulated::current->copies) {
    memset(copy.to, 0, 16);
    memcpy(copy.to, copy.from, copy.bytes);
  }
  emulated::current->copies.clear();
}

template <typename V>
V load_fresh(const V* from) {
  return *from;
}

template <typename V>
V shuffle_xor(V value, int mask) {
  struct Lane {
    V given, taken;
  } mine{value, value};
  emulated::with_warp("shuffle", &mine, [mask](void** given) {
    for (int l = 0; l < 32; ++l)
      static_cast<Lane*>(given[l])->taken = static_cast<Lane*>(given[l ^ mask])->given;
  });
  return mine.taken;
}

inline void sync_warp() {
  emulated::with_warp("sync_warp", nullptr, [](void**) {});
}
inline void sync_threads() { emulated::meet(emulated::grid.blocks[block_index()]); }
inline void sync_cluster(int cluster) { emulated::meet(emulated::grid.clusters[block_index() / cluster]); }
inline void sync_grid() { emulated::meet(emulated::grid.all); }

template <typename P>
const P* in_neighbour(P* mine, int rank, int cluster) {
  emulated::check_shared(mine, sizeof(P));
  const size_t offset = reinterpret_cast<char*>(mine) - emulated::grid.shared[block_index()];
  return reinterpret_cast<const P*>(emulated::grid.shared[block_index() / cluster * cluster + rank] + offset);
}

inline void load_matrices(unsigned (&r)[4], const void* row, bool transposed = false) {
  struct Lane {
    const uint16_t* row;
    unsigned* r;
  } mine{static_cast<const uint16_t*>(row), r};
  emulated::check_shared(row, 16);
  emulated::check_aligned(row);
  emulated::with_warp(transposed ? "ldmatrix.trans" : "ldmatrix", &mine, [transposed](void** given) {
    for (int l = 0; l < 32; ++l) {
      for (int m = 0; m < 4; ++m) {
        const auto element = [&](int i, int j) { return static_cast<Lane*>(given[8 * m + i])->row[j]; };
        const int i = l / 4, j = l % 4 * 2;
        const uint32_t low = transposed ? element(j, i) : element(i, j);
        const uint32_t high = transposed ? element(j + 1, i) : element(i, j + 1);
        static_cast<Lane*>(given[l])->r[m] = high << 16 | low;
      }
    }
  });
}

inline void load_matrices_transposed(unsigned (&r)[4], const void* row) { load_matrices(r, row, true); }

template <typename T>
void multiply_16x8x16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, T) {
  struct Lane {
    float* c;
    const unsigned* a;
    unsigned b[2];
  } mine{c, a, {b0, b1}};
  emulated::with_warp("mma", &mine, [](void** given) {
    float left[16][16], right[16][8];
    const auto part = [](unsigned pair, int e) { return to_float(T{static_cast<uint16_t>(pair >> 16 * e)}); };
    for (int l = 0; l < 32; ++l) {
      const Lane& lane = *static_cast<Lane*>(given[l]);
      const int g = l / 4, t = l % 4 * 2;
      for (int e = 0; e < 2; ++e) {
        for (int n = 0; n < 4; ++n) left[g + n % 2 * 8][t + n / 2 * 8 + e] = part(lane.a[n], e);
        for (int n = 0; n < 2; ++n) right[t + n * 8 + e][g] = part(lane.b[n], e);
      }
    }
    for (int l = 0; l < 32; ++l) {
      for (int e = 0; e < 4; ++e) {
        const int row = l / 4 + e / 2 * 8, column = l % 4 * 2 + e % 2;
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
        static_cast<Lane*>(given[l])->c[e] += sum;
      }
    }
  });
}

}  // namespace contrastive_i2v::cuda
