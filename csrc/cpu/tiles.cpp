// Register tiles in the compiler's vector type. Where the compiler can, each function is built once for each
// x86-64 level and the loader picks the one that the processor has, so a wheel is both portable and fast.

#include "tiles.h"

#include <cstring>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define CI2V_EVERY_LEVEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CI2V_EVERY_LEVEL
#endif
#define CI2V_INLINE __attribute__((always_inline)) inline

namespace contrastive_i2v::cpu {

namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kRows = 4;  // of a tile, either way: 16 sums stay in registers
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));

// By reference and always inlined: how a vector is passed by value changes with the level.
CI2V_INLINE void load(const float* from, Vector& to) { std::memcpy(&to, from, sizeof(Vector)); }

CI2V_INLINE void store(const Vector& from, float* to) { std::memcpy(to, &from, sizeof(Vector)); }

CI2V_INLINE float sum(const Vector& v) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  Vector total = v + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  total += __builtin_shufflevector(total, total, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  total += __builtin_shufflevector(total, total, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return total[0] + total[1];
#else
  float total = 0;
  for (int64_t l = 0; l < kLanes; ++l) total += v[l];
  return total;
#endif
}

template <int M, int N>
CI2V_INLINE void dot_tile(const float* a, const float* b, float* out, int64_t stride) {
  Vector total[M][N] = {};
  for (int64_t d = 0; d < kSlice; d += kLanes) {
    Vector left[M], right[N];
    for (int i = 0; i < M; ++i) load(a + i * kSlice + d, left[i]);
    for (int j = 0; j < N; ++j) load(b + j * kSlice + d, right[j]);
    for (int i = 0; i < M; ++i) {
      for (int j = 0; j < N; ++j) total[i][j] += left[i] * right[j];
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int j = 0; j < N; ++j) out[i * stride + j] = sum(total[i][j]);
  }
}

template <int M>
CI2V_INLINE void dot_rows(const float* a, const float* b, int64_t n, float* out) {
  int64_t j = 0;
  for (; j + kRows <= n; j += kRows) dot_tile<M, kRows>(a, b + j * kSlice, out + j, n);
  for (; j < n; ++j) dot_tile<M, 1>(a, b + j * kSlice, out + j, n);
}

template <int M>
CI2V_INLINE void sum_rows(const float* weights, const float* b, int64_t n, float* out) {
  constexpr int64_t width = 4;  // vectors
  for (int64_t d = 0; d < kSlice; d += width * kLanes) {
    Vector total[M][width] = {};
    for (int64_t j = 0; j < n; ++j) {
      Vector right[width];
      for (int v = 0; v < width; ++v) load(b + j * kSlice + d + v * kLanes, right[v]);
      for (int i = 0; i < M; ++i) {
        for (int v = 0; v < width; ++v) total[i][v] += weights[i * n + j] * right[v];
      }
    }
    for (int i = 0; i < M; ++i) {
      for (int v = 0; v < width; ++v) store(total[i][v], out + i * kSlice + d + v * kLanes);
    }
  }
}

}  // namespace

CI2V_EVERY_LEVEL
void dot_products(const float* a, int64_t m, const float* b, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows) dot_rows<kRows>(a + i * kSlice, b, n, out + i * n);
  for (; i < m; ++i) dot_rows<1>(a + i * kSlice, b, n, out + i * n);
}

CI2V_EVERY_LEVEL
void weighted_sums(const float* weights, int64_t m, const float* b, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows) sum_rows<kRows>(weights + i * n, b, n, out + i * kSlice);
  for (; i < m; ++i) sum_rows<1>(weights + i * n, b, n, out + i * kSlice);
}

}  // namespace contrastive_i2v::cpu
