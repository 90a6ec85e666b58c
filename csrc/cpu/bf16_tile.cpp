// Who multiplies a tile of bfloat16: torch's own kernel for the processor's matrix instructions, which has to
// earn trust first, or a plain loop over the same tile.

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

void multiply_emulated(const Tile::Left& left, const Tile::Right& right, Tile::Sums& sums) {
  constexpr int64_t columns = Tile::kColumns;
  for (int64_t k = 0; k < Tile::kDepth; k += 2) {
    float even[columns], odd[columns];
    for (int64_t n = 0; n < columns; ++n) {
      even[n] = right.data[k * columns + 2 * n];
      odd[n] = right.data[k * columns + 2 * n + 1];
    }
    for (int64_t i = 0; i < 2 * Tile::kRows; ++i) {
      const float a = left.data[i * Tile::kStride + k], b = left.data[i * Tile::kStride + k + 1];
      float* to = sums.data + i * columns;
      for (int64_t n = 0; n < columns; ++n) to[n] += a * even[n] + b * odd[n];
    }
  }
}

constexpr TileProduct kEmulated = {multiply_emulated, [] {}};

// For the test of the check: one pair that neighbours the wrong way.
constexpr TileProduct kBroken = {[](const Tile::Left& left, const Tile::Right& right, Tile::Sums& sums) {
                                   Tile::Right other = right;
                                   std::swap(other.data[1], other.data[2]);
                                   multiply_emulated(left, other, sums);
                                 },
                                 [] {}};

#ifdef CPUBLAS_BRGEMM_BF16BF16F32  // newer than brgemm's is_vnni
namespace blas = at::native::cpublas;

constexpr TileProduct kHardware = {
    [](const Tile::Left& left, const Tile::Right& right, Tile::Sums& sums) {
      blas::brgemm(2 * Tile::kRows, Tile::kColumns, Tile::kDepth, Tile::kStride, Tile::kColumns,
                   Tile::kColumns, /*add_C=*/true, left.data, right.data, sums.data, /*is_vnni=*/true);
    },
    [] { blas::brgemm_release(); }};

// AMX. AVX512-BF16 alone is twice as fast as float32, which the two parts of a float use up.
bool has_hardware() { return blas::could_pack(at::kBFloat16); }
#else
constexpr TileProduct kHardware = kEmulated;
bool has_hardware() { return false; }
#endif

// |result - float32's| / |float32's| of both products on a problem that is ragged in every direction and
// takes several tiles.
double disagreement(const TileProduct& product) {
  constexpr int64_t queries = Tile::kRows + 1, rows = Tile::kDepth + 3, elements = Tile::kDepth + 5;
  const auto numbers = [](int64_t height, int64_t width) {
    return at::arange(height * width, at::kDouble).square_().mul_(0.37).sin_().view({height, width});
  };
  const at::Tensor x0 = numbers(queries, elements).to(at::kFloat);
  const at::Tensor coefficients = numbers(queries, rows).to(at::kFloat);
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
  return full(queries, Tile::kRows) * (full(rows, Tile::kColumns) * full(elements, Tile::kDepth) +
                                       full(rows, Tile::kDepth) * full(elements, Tile::kColumns)) <=
         8;
}

}  // namespace

const TileProduct* find_tile_product(int64_t queries, int64_t rows, int64_t elements) {
  const char* variable = std::getenv("CI2V_CPU_BF16");
  const std::string_view mode = variable ? variable : "auto";
  if (mode == "off") return nullptr;
  if (mode == "emulated") return verified<kEmulated>();
  if (mode == "broken") return verified<kBroken>();
  TORCH_CHECK_VALUE(mode == "auto", "CI2V_CPU_BF16 is ", mode, ": expected auto, off or emulated");
  if (!has_hardware() || !is_worth_filling(queries, rows, elements)) return nullptr;
  return verified<kHardware>();
}

}  // namespace contrastive_i2v::cpu
