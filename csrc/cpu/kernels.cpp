// See kernels.h. Everything here lives in an anonymous namespace, so that no inline function compiled for one
// instruction set is ever linked into another's.

#include "kernels.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace contrastive_i2v::cpu {

namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Vec::size();
constexpr bool kWide = kLanes == 16;  // AVX-512: 32 registers, else 16

constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kSmallest = std::numeric_limits<float>::min();
constexpr float kLogSmallest = -87.3365f;

float total(const Vec& v) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, v);
}

Vec load(const float* from) { return Vec::loadu(from); }

Vec load(const c10::BFloat16* from) {
  Vec to;
  at::vec::load_fp32_from_bf16(from, to);
  return to;
}

Vec load(const c10::Half* from) {
  Vec to;
  at::vec::load_fp32_from_fp16(from, to);
  return to;
}

template <typename T>
Vec load(const T* from, int64_t count) {
  T padded[kLanes] = {};
  std::copy(from, from + count, padded);
  return load(padded);
}

void store(const Vec& v, float* to, int64_t count) { v.store(to, static_cast<int>(count)); }

void store(const Vec& v, c10::BFloat16* to, int64_t count) {
  at::vec::convert_from_float<c10::BFloat16>(v, v).store(to, static_cast<int>(count));
}

// body(d, lanes): once for each vector of [0, count), the last one maybe short.
template <typename Body>
void for_vectors(int64_t count, const Body& body) {
  int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes) body(d, std::integral_constant<int64_t, kLanes>());
  if (d < count) body(d, count - d);
}

// Whole vectors take the plain load.
template <typename T>
Vec load(const T* from, std::integral_constant<int64_t, kLanes>) {
  return load(from);
}

void store(const Vec& v, float* to, std::integral_constant<int64_t, kLanes>) { v.store(to); }

// call(pointer of the element type)
template <typename Call>
auto with_type(const Matrix& matrix, const Call& call) {
  switch (matrix.dtype) {
    case c10::kBFloat16:
      return call(static_cast<const c10::BFloat16*>(matrix.data));
    case c10::kHalf:
      return call(static_cast<const c10::Half*>(matrix.data));
    default:
      return call(static_cast<const float*>(matrix.data));
  }
}

// A sum of floats, whole vectors side by side and then in double every 64 of them: its error does not grow
// with the length.
class Sum {
 public:
  void add(const Vec& v) {
    part_ = part_ + v;
    if (++parts_ == 64) flush();
  }
  double value() {
    flush();
    return sum_;
  }

 private:
  void flush() {
    sum_ += total(part_);
    part_ = Vec(0);
    parts_ = 0;
  }
  Vec part_ = Vec(0);
  int parts_ = 0;
  double sum_ = 0;
};

void read(const Matrix& matrix, int64_t row, int64_t begin, int64_t count, float* to) {
  with_type(matrix, [&](const auto* data) {
    const auto* from = data + row * matrix.columns + begin;
    for_vectors(count, [&](int64_t d, auto lanes) { store(load(from + d, lanes), to + d, lanes); });
  });
}

void round(const float* from, int64_t count, c10::BFloat16* to) {
  for_vectors(count, [&](int64_t d, auto lanes) { store(load(from + d, lanes), to + d, lanes); });
}

// Rows of a bank are far apart: what lies behind these columns is what the next panel will ask for.
void interleave(const c10::BFloat16* __restrict even, const c10::BFloat16* __restrict odd, int64_t count,
                c10::BFloat16* __restrict to) {
  for (int64_t n = 0; n < count; n += 32) {
    __builtin_prefetch(even + count + n);
    if (odd) __builtin_prefetch(odd + count + n);
  }
  for (int64_t n = 0; n < count; ++n) {  // of their bits, so that the compiler finds vectors
    to[2 * n].x = even[n].x;
    to[2 * n + 1].x = odd ? odd[n].x : 0;
  }
}

#if defined(CPU_CAPABILITY_AVX512)
// A block of 16 rows and 16 pairs: first within 128 bits, then whole quarters.
void transpose_block(const c10::BFloat16* from, int64_t stride, c10::BFloat16* to, int64_t to_stride) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // quarter q of a[i + c]: pair 4 q + c of rows i to i + 3
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const auto put = [&](int pair, __m512i row) { _mm512_storeu_si512(to + 2 * pair * to_stride, row); };
    const __m512i even_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    put(c, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    put(4 + c, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    put(8 + c, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    put(12 + c, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}
#endif

void transpose_pairs(const c10::BFloat16* from, int64_t stride, int64_t rows, int64_t pairs,
                     c10::BFloat16* to, int64_t to_stride) {
  constexpr int64_t block = 16;
  for (int64_t n = 0; n < rows; n += block) {
    for (int64_t p = 0; p < pairs; p += block) {
#if defined(CPU_CAPABILITY_AVX512)
      if (n + block <= rows && p + block <= pairs) {
        transpose_block(from + n * stride + 2 * p, stride, to + 2 * (p * to_stride + n), to_stride);
        continue;
      }
#endif
      for (int64_t i = n; i < std::min(n + block, rows); ++i) {
        for (int64_t j = p; j < std::min(p + block, pairs); ++j) {
          std::copy_n(from + i * stride + 2 * j, 2, to + 2 * (j * to_stride + i));
        }
      }
    }
  }
}

double squared_norm(const float* row, int64_t count) {
  Sum sum;
  for_vectors(count, [&](int64_t d, auto lanes) {
    const Vec v = load(row + d, lanes);
    sum.add(v * v);
  });
  return sum.value();
}

void add(const float* from, int64_t n, float* to) {
  for_vectors(
      n, [&](int64_t d, auto lanes) { store(load(to + d, lanes) + load(from + d, lanes), to + d, lanes); });
}

// Every logit, the positive's too, comes from this one row, so the loss is never negative. Factors of the
// whole row are rounded to float once: an error in them does not average out over D.
double softmax(const Problem& problem, int64_t k, int64_t i, float* row, double x0_scale,
               const float* bank_scale) {
  const Bank& bank = problem.banks[k];
  const int64_t n = bank.rows.rows;
  const double exact_scale = x0_scale / problem.temperature;
  const Vec scale(static_cast<float>(exact_scale));
  const int64_t positive = bank.positives ? bank.positives[i] : i;

  Vec poison(0);  // NaN once any logit is NaN or infinite, whatever the softmax would make of it
  for_vectors(n, [&](int64_t j, auto lanes) {
    Vec logit = load(row + j, lanes) * scale;
    if (bank_scale) logit = logit * load(bank_scale + j, lanes);
    poison = poison + logit * Vec(0);
    store(logit, row + j, lanes);
  });
  const float poisoned = total(poison);
  float& cross_entropy = problem.cross_entropy[k * problem.queries + i];
  if (positive < 0) {
    std::fill(row, row + n, 0.0f);
    cross_entropy = poisoned;
    return 0;
  }

  const float positive_logit = row[positive];
  if (problem.query_groups && bank.groups) {
    const int64_t group = problem.query_groups[i];
    for (int64_t j = 0; j < n; ++j) {
      if (bank.groups[j] == group && j != positive) row[j] = kLowest;  // finite, so that 0 * it stays 0 below
    }
  }
  float maximum = kLowest;
  Vec maxima(kLowest);
  for_vectors(n, [&](int64_t j, auto lanes) {
    if constexpr (std::is_same_v<decltype(lanes), int64_t>) {
      maximum = *std::max_element(row + j, row + n);
    } else {
      maxima = at::vec::maximum(maxima, load(row + j));
    }
  });
  maximum = std::max(maximum, at::vec::vec_reduce_all<float>(
                                  [](const Vec& a, const Vec& b) { return at::vec::maximum(a, b); }, maxima));

  Sum rest_sum, weighted_sum;  // over all candidates but the positive
  row[positive] = kLowest;
  for_vectors(n, [&](int64_t j, auto lanes) {
    const Vec logit = load(row + j, lanes);
    const Vec exponent = logit - Vec(maximum);
    // Subnormal weights cannot move a sum that holds a 1, but every product with one is a hundred times
    // slower.
    const Vec gone = exponent < Vec(kLogSmallest);
    Vec weight = Vec::blendv(exponent.exp(), Vec(0), gone);
    if constexpr (std::is_same_v<decltype(lanes), int64_t>) weight = Vec::set(Vec(0), weight, lanes);
    store(weight, row + j, lanes);
    rest_sum.add(weight);
    if (bank_scale) weighted_sum.add(weight * Vec::blendv(logit - Vec(positive_logit), Vec(0), gone));
  });
  const double rest = rest_sum.value();
  const double sum = rest + std::exp(positive_logit - maximum);
  cross_entropy =
      poisoned + static_cast<float>(positive_logit == maximum ? std::log1p(rest)
                                                              : maximum - positive_logit + std::log(sum));
  if (!problem.gradient) return 0;

  // p - y, where 1 - p of the positive is the sum of the others: no cancellation when the softmax saturates.
  const double weight = bank.weight * problem.contrastive_weights[i] * problem.c_out[i] / problem.queries;
  const Vec factor(static_cast<float>(weight * exact_scale / sum));
  for_vectors(n, [&](int64_t j, auto lanes) {
    Vec coefficient = load(row + j, lanes) * factor;
    if (bank_scale) coefficient = coefficient * load(bank_scale + j, lanes);
    coefficient = Vec::blendv(coefficient, Vec(0), coefficient.abs() < Vec(kSmallest));
    store(coefficient, row + j, lanes);
  });
  const float positive_factor = static_cast<float>(-rest * weight * exact_scale / sum);
  row[positive] = bank_scale ? positive_factor * bank_scale[positive] : positive_factor;
  return bank_scale ? weight * weighted_sum.value() / sum * x0_scale * x0_scale : 0;
}

// call(prediction, noisy, target): pointers to the three, which have one type.
template <typename Call>
auto with_latents(const Problem& problem, const Call& call) {
  return with_type(problem.prediction, [&](const auto* prediction) {
    using Latents = decltype(prediction);
    return call(prediction, static_cast<Latents>(problem.noisy.data),
                static_cast<Latents>(problem.target.data));
  });
}

// call(pointer to problem.gradient)
template <typename Call>
void with_gradient(const Problem& problem, const Call& call) {
  if (problem.gradient_dtype == c10::kBFloat16) {
    call(static_cast<c10::BFloat16*>(problem.gradient));
  } else {
    call(static_cast<float*>(problem.gradient));
  }
}

RowSums reconstruct(const Problem& problem, int64_t i, int64_t begin, int64_t count, float* x0) {
  const Vec skip(problem.c_skip[i]), out(problem.c_out[i]);
  const int64_t at = i * problem.elements + begin;
  Sum error, norm;
  with_latents(problem, [&](const auto* f, const auto* x, const auto* y) {
    for_vectors(count, [&](int64_t d, auto lanes) {
      const Vec prediction = load(f + at + d, lanes);
      const Vec difference = prediction - load(y + at + d, lanes);
      const Vec clean = at::vec::fmadd(out, prediction, skip * load(x + at + d, lanes));
      error.add(difference * difference);
      if (problem.normalize) norm.add(clean * clean);
      store(clean, x0 + d, lanes);
    });
  });
  return {error.value(), norm.value()};
}

// 2 w_i (F - target) / (B D) + sum_j c_j z_j - projection * x0, which only the cosine reconstructs again
void finish(const Problem& problem, int64_t i, int64_t begin, int64_t count, const float* contrastive,
            float projection) {
  const Vec factor(static_cast<float>(2.0 * problem.mse_weights[i] /
                                      (static_cast<double>(problem.elements) * problem.queries)));
  const Vec skip(-projection * problem.c_skip[i]), out(-projection * problem.c_out[i]);
  const int64_t at = i * problem.elements + begin;
  with_latents(problem, [&](const auto* f, const auto* x, const auto* y) {
    with_gradient(problem, [&](auto* to) {
      for_vectors(count, [&](int64_t d, auto lanes) {
        const Vec prediction = load(f + at + d, lanes);
        Vec pull = load(contrastive + d, lanes);
        if (problem.normalize) {
          pull = at::vec::fmadd(out, prediction, at::vec::fmadd(skip, load(x + at + d, lanes), pull));
        }
        store(at::vec::fmadd(factor, prediction - load(y + at + d, lanes), pull), to + at + d, lanes);
      });
    });
  });
}

// body(integral_constant<int, rows>, i) for blocks of M rows, and one smaller block for what is left.
template <int M, typename Body>
void for_row_blocks(int64_t begin, int64_t end, const Body& body) {
  for (; begin + M <= end; begin += M) body(std::integral_constant<int, M>(), begin);
  if constexpr (M > 1) for_row_blocks<M - 1>(begin, end, body);
}

#if defined(CPU_CAPABILITY_AVX512)
// out[i * stride + j] = sum of the lanes of v[4 * i + j], by transposing while adding
void store_totals(const Vec (&v)[4][4], float* out, int64_t stride) {
  __m512 lanes[4];
  for (int i = 0; i < 4; ++i) {
    const __m512 a = v[i][0], b = v[i][1], c = v[i][2], d = v[i][3];
    const __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    const __m512 cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    lanes[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))) +
               _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd)));
  }
  const __m512 left =
      _mm512_shuffle_f32x4(lanes[0], lanes[1], 0x88) + _mm512_shuffle_f32x4(lanes[0], lanes[1], 0xdd);
  const __m512 right =
      _mm512_shuffle_f32x4(lanes[2], lanes[3], 0x88) + _mm512_shuffle_f32x4(lanes[2], lanes[3], 0xdd);
  const __m512 all = _mm512_shuffle_f32x4(left, right, 0x88) + _mm512_shuffle_f32x4(left, right, 0xdd);
  _mm_storeu_ps(out, _mm512_castps512_ps128(all));
  _mm_storeu_ps(out + stride, _mm512_extractf32x4_ps(all, 1));
  _mm_storeu_ps(out + 2 * stride, _mm512_extractf32x4_ps(all, 2));
  _mm_storeu_ps(out + 3 * stride, _mm512_extractf32x4_ps(all, 3));
}
#endif

template <int M, int N>
void store_totals(const Vec (&v)[M][N], float* out, int64_t stride) {
  for (int i = 0; i < M; ++i) {
    for (int j = 0; j < N; ++j) out[i * stride + j] = total(v[i][j]);
  }
}

template <int M, int N>
void dot_tile(const Rows& a, int64_t i, const Rows& b, int64_t j, int64_t depth, float* out,
              int64_t out_stride) {
  const float *left = a.data + i * a.stride, *right = b.data + j * b.stride;
  Vec sums[M][N];
  for (int r = 0; r < M; ++r) {
    for (int c = 0; c < N; ++c) sums[r][c] = Vec(0);
  }
  for (int64_t d = 0; d < depth; d += kLanes) {
    Vec rows[M];
    for (int r = 0; r < M; ++r) rows[r] = load(left + r * a.stride + d);
    for (int c = 0; c < N; ++c) {
      const Vec column = load(right + c * b.stride + d);
      for (int r = 0; r < M; ++r) sums[r][c] = at::vec::fmadd(rows[r], column, sums[r][c]);
    }
  }
  store_totals(sums, out + i * out_stride + j, out_stride);
}

void dot_products(const Rows& a, const Rows& b, int64_t depth, float* out, int64_t out_stride) {
  for_row_blocks<kWide ? 4 : 3>(0, a.count, [&](auto m, int64_t i) {
    for_row_blocks<4>(0, b.count,
                      [&](auto n, int64_t j) { dot_tile<m, n>(a, i, b, j, depth, out, out_stride); });
  });
}

constexpr int64_t kColumns = 64;  // of a block of candidates, which stays in the first cache
constexpr int64_t kChunk = 96;    // candidates

// out_i (+)= sum_j weights_ij z_j over W vectors. The first rows i of a block read z from `candidates`, far
// apart in memory, ask for what the next block will want, and leave a compact copy in `block` for the others.
template <int M, int W, bool first>
void sum_tile(const float* weights, int64_t stride, const float* const* candidates, int64_t d, float* block,
              int64_t n, bool add, float* out, int64_t out_stride) {
  Vec sums[M][W];
  for (int i = 0; i < M; ++i) {
    for (int v = 0; v < W; ++v) sums[i][v] = add ? load(out + i * out_stride + v * kLanes) : Vec(0);
  }
  for (int64_t j = 0; j < n; ++j, block += kColumns) {
    Vec row[W];
    for (int v = 0; v < W; ++v) {
      if constexpr (first) {
        row[v] = load(candidates[j] + d + v * kLanes);
        row[v].store(block + v * kLanes);
        __builtin_prefetch(candidates[j] + d + kColumns + v * kLanes);
      } else {
        row[v] = load(block + v * kLanes);
      }
    }
    for (int i = 0; i < M; ++i) {
      const Vec weight(weights[i * stride + j]);
      for (int v = 0; v < W; ++v) sums[i][v] = at::vec::fmadd(weight, row[v], sums[i][v]);
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int v = 0; v < W; ++v) sums[i][v].store(out + i * out_stride + v * kLanes);
  }
}

void weighted_sums(const float* weights, int64_t rows, const std::vector<Rows>& banks, int64_t depth,
                   float* out) {
  std::vector<const float*> candidates;
  for (const Rows& bank : banks) {
    for (int64_t j = 0; j < bank.count; ++j) candidates.push_back(bank.data + j * bank.stride);
  }
  const int64_t total = static_cast<int64_t>(candidates.size());
  alignas(64) float block[kChunk * kColumns];
  for (int64_t begin = 0; begin == 0 || begin < total; begin += kChunk) {
    const int64_t n = std::min(kChunk, total - begin);
    for (int64_t d = 0; d < depth; d += kColumns) {
      const auto sum = [&](auto m, int64_t i, auto first) {
        for_row_blocks<kWide ? 4 : 2>(0, std::min(kColumns, depth - d) / kLanes, [&](auto width, int64_t v) {
          sum_tile<m, width, first>(weights + i * total + begin, total, candidates.data() + begin,
                                    d + v * kLanes, block + v * kLanes, n, begin > 0,
                                    out + i * depth + d + v * kLanes, depth);
        });
      };
      for_row_blocks<6>(0, rows, [&](auto m, int64_t i) {
        if (i == 0) {
          sum(m, i, std::true_type());
        } else {
          sum(m, i, std::false_type());
        }
      });
    }
  }
}

}  // namespace

#define CI2V_CONCATENATE_(a, b) a##b
#define CI2V_CONCATENATE(a, b) CI2V_CONCATENATE_(a, b)

extern const Kernels CI2V_CONCATENATE(kernels_, CPU_CAPABILITY);
const Kernels CI2V_CONCATENATE(kernels_, CPU_CAPABILITY) = {
    read, round,       transpose_pairs, interleave,   squared_norm,  softmax,
    add,  reconstruct, finish,          dot_products, weighted_sums,
};

}  // namespace contrastive_i2v::cpu
