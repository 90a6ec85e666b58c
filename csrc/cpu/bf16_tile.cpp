// Who multiplies a tile of bfloat16: torch's own kernel for the processor's matrix instructions or ours for
// AVX512-BF16, which have to earn trust first, or plain loops over the same tiles.

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <exception>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "bf16_products.h"

#if __has_include(<ATen/native/CPUBlas.h>)
#include <ATen/native/CPUBlas.h>
#endif

namespace contrastive_i2v::cpu {

namespace {

struct alignas(64) Sums {  // of a whole tile
  float data[Tile::kRows * Tile::kColumns];
};

// `sum(left, right, block, sums)` sums the tile, and what of it is there goes where it belongs.
template <int64_t parts, auto sum>
void multiply_tile(const Parts& left, const Tile::Right& right, const Block& block) {
  Sums sums = {};
  sum(left, right, block, sums);
  for (int64_t i = 0; i < block.rows; ++i) {
    const float* high = sums.data + i * Tile::kColumns;
    const float* low = high + Tile::kRows / 2 * Tile::kColumns;
    float* to = block.out + i * block.stride;
    for (int64_t n = 0; n < block.columns; ++n) {
      to[n] = (block.add ? to[n] : 0.0f) + (parts == 2 ? high[n] + low[n] : high[n]);
    }
  }
}

void sum_emulated(const Parts& left, const Tile::Right& right, const Block& block, Sums& sums) {
  constexpr int64_t columns = Tile::kColumns;
  for (int64_t k = 0; k < block.depth; k += 2) {
    float even[columns], odd[columns];
    for (int64_t n = 0; n < columns; ++n) {
      even[n] = right.data[k * columns + 2 * n];
      odd[n] = right.data[k * columns + 2 * n + 1];
    }
    for (int64_t i = 0; i < block.rows; ++i) {
      const float a = left.data[i * left.stride + k], b = left.data[i * left.stride + k + 1];
      float* to = sums.data + i * columns;
      for (int64_t n = 0; n < columns; ++n) to[n] += a * even[n] + b * odd[n];
    }
  }
}

void sum_emulated_whole(const Parts& left, const Tile::Right& right, const Block&, Sums& sums) {
  sum_emulated(left, right, {nullptr, 0, Tile::kRows, Tile::kColumns, Tile::kDepth, false}, sums);
}

void nothing() {}

constexpr TileProduct kEmulated = {2, true, multiply_tile<2, sum_emulated_whole>, nothing};
constexpr TileProduct kEmulatedAvx512 = {1, false, multiply_tile<1, sum_emulated>, nothing};

// For the test of the check: one pair that neighbours the wrong way.
void sum_broken(const Parts& left, const Tile::Right& right, const Block& block, Sums& sums) {
  Tile::Right other = right;
  std::swap(other.data[1], other.data[2]);
  sum_emulated_whole(left, other, block, sums);
}

constexpr TileProduct kBroken = {2, true, multiply_tile<2, sum_broken>, nothing};

#ifdef CPUBLAS_BRGEMM_BF16BF16F32  // newer than brgemm's is_vnni
namespace blas = at::native::cpublas;

void sum_amx(const Parts& left, const Tile::Right& right, const Block&, Sums& sums) {
  blas::brgemm(Tile::kRows, Tile::kColumns, Tile::kDepth, left.stride, Tile::kColumns, Tile::kColumns,
               /*add_C=*/true, left.data, right.data, sums.data, /*is_vnni=*/true);
}

constexpr TileProduct kAmx = {2, true, multiply_tile<2, sum_amx>, [] { blas::brgemm_release(); }};

bool has_amx() { return blas::could_pack(at::kBFloat16); }
#else
constexpr TileProduct kAmx = kEmulated;
bool has_amx() { return false; }
#endif

// |result - float32's| / |float32's| of both products on a problem that is ragged in every direction and
// takes several tiles.
double disagreement(const TileProduct& product) {
  constexpr int64_t rows = Tile::kDepth + 3, elements = Tile::kDepth + 5;
  const int64_t queries = product.rows() + 1;
  const auto numbers = [](int64_t height, int64_t width) {
    return at::arange(height * width, at::kDouble).square_().mul_(0.37).sin_().view({height, width});
  };
  const auto floats = [&](int64_t height, int64_t width) {  // that `parts` parts hold
    const at::Tensor exact = numbers(height, width).to(at::kFloat);
    return product.parts == 1 ? exact.to(at::kBFloat16).to(at::kFloat) : exact;
  };
  const at::Tensor x0 = floats(queries, elements), coefficients = floats(queries, rows);
  const at::Tensor bank = numbers(rows, elements).to(at::kBFloat16), wide = bank.to(at::kFloat);
  const Matrix matrix = {bank.const_data_ptr(), at::kBFloat16, rows, elements};
  const at::Tensor logits = at::empty({queries, rows}, at::kFloat);
  const at::Tensor sums = at::empty({queries, elements}, at::kFloat);
  tiled_logits(product, {x0.const_data_ptr<float>(), elements, queries}, matrix,
               logits.mutable_data_ptr<float>(), rows);
  tiled_weighted_sums(product, {coefficients.const_data_ptr<float>(), rows, queries}, matrix, false,
                      sums.mutable_data_ptr<float>());
  const auto error = [](const at::Tensor& result, const at::Tensor& expected) {
    return ((result - expected).norm() / expected.norm()).item<double>();
  };
  const double of_logits = error(logits, at::mm(x0, wide.t()));
  const double of_sums = error(sums, at::mm(coefficients, wide));
  return of_logits + of_sums;  // NaN if either is
}

// Between the 2^-17 of the split and the 2^-8 of a product without the low parts; a misplaced pair is more.
constexpr double kTolerance = 0x1p-12;

template <const TileProduct& product>
const TileProduct* verified() {
  static const bool is_right = [] {
    double error = std::numeric_limits<double>::infinity();
    std::string why;
    try {
      error = disagreement(product);
    } catch (const std::exception& exception) {
      why = std::string(": ") + exception.what();
    }
    if (error < kTolerance) return true;
    TORCH_WARN("contrastive_i2v: the bfloat16 matrix product of this processor and torch is off by ", error,
               " on a known problem, so bfloat16 banks are multiplied in float32 (CI2V_CPU_BF16=off skips "
               "this check)",
               why);
    return false;
  }();
  return is_right ? &product : nullptr;
}

// Whether filling up to whole tiles keeps half of what the hardware gains, 8 times.
bool is_worth_filling(int64_t queries, int64_t rows, int64_t elements) {
  const auto full = [](int64_t size, int64_t tile) {
    return static_cast<double>((size + tile - 1) / tile * tile) / static_cast<double>(size);
  };
  return full(queries, kAmx.rows()) * (full(rows, Tile::kColumns) * full(elements, Tile::kDepth) +
                                       full(rows, Tile::kDepth) * full(elements, Tile::kColumns)) <=
         8;
}

}  // namespace

const TileProduct* find_tile_product(int64_t queries, int64_t rows, int64_t elements) {
  const char* variable = std::getenv("CI2V_CPU_BF16");
  const std::string_view mode = variable ? variable : "auto";
  if (mode == "off") return nullptr;
  if (mode == "emulated") return verified<kEmulated>();
  if (mode == "emulated-avx512") return verified<kEmulatedAvx512>();
  if (mode == "broken") return verified<kBroken>();
  if (mode == "avx512") {
    TORCH_CHECK_VALUE(has_avx512_bf16(), "CI2V_CPU_BF16 is avx512, but this processor has no AVX512-BF16");
    return verified<avx512_bf16>();
  }
  TORCH_CHECK_VALUE(mode == "auto", "CI2V_CPU_BF16 is ", mode,
                    ": expected auto, off, avx512, emulated or emulated-avx512");
  if (has_amx()) return is_worth_filling(queries, rows, elements) ? verified<kAmx>() : nullptr;
  return gains_from_avx512_bf16() ? verified<avx512_bf16>() : nullptr;
}

const TileProduct* find_rounding_product(const Problem& problem) {
  bool is_bf16 = problem.prediction.dtype == at::kBFloat16 && !problem.banks.empty();
  for (const Bank& bank : problem.banks) is_bf16 = is_bf16 && bank.rows.dtype == at::kBFloat16;
  if (!is_bf16) return nullptr;
  const TileProduct* product = find_tile_product(problem.queries, problem.candidates(), problem.elements);
  return product && product->parts == 1 ? product : nullptr;
}

}  // namespace contrastive_i2v::cpu
