// Checks the arguments of contrastive_i2v::diffusion_loss, lays them out for the kernels and picks the regime
// by size.

#include "diffusion_loss.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/arguments.h"
#include "problem.h"

namespace contrastive_i2v {

namespace {

// Keeps whatever the raw pointers point into.
using Keep = std::vector<at::Tensor>;

cpu::Matrix matrix(const at::Tensor& tensor, Keep& keep) {
  keep.push_back(tensor.contiguous());
  return {keep.back().const_data_ptr(), tensor.scalar_type(), tensor.size(0),
          tensor.numel() / tensor.size(0)};
}

void to_float(cpu::Matrix& matrix, const at::Tensor& tensor, Keep& keep) {
  keep.push_back(tensor.to(at::kFloat).contiguous());
  matrix.data = keep.back().const_data_ptr();
  matrix.dtype = at::kFloat;
}

std::vector<float> rows(const std::optional<at::Tensor>& vector, int64_t size, const char* name) {
  if (!vector) return std::vector<float>(size, 1.0f);
  const at::Tensor values = row_vector(*vector, size, name, at::kCPU);
  return std::vector<float>(values.const_data_ptr<float>(), values.const_data_ptr<float>() + size);
}

const int64_t* indices(const at::Tensor& vector, int64_t size, const char* name, Keep& keep) {
  keep.push_back(index_vector(vector, size, name, at::kCPU));
  return keep.back().const_data_ptr<int64_t>();
}

double checked_temperature(const std::optional<at::Tensor>& tensor, double number) {
  if (!tensor) return number;
  const double value = tensor->item().toDouble();
  TORCH_CHECK_VALUE(!(value <= 0), "temperature is ", value, ": expected a value > 0");
  return value + 0 * value;  // infinity becomes NaN, not a silently flat softmax
}

// The cosine does not see a row's scale, so over the larger of the two: abar -> 0 cannot overflow |x0|^2.
void bound_coefficients(std::vector<float>& skip, std::vector<float>& out) {
  for (size_t i = 0; i < skip.size(); ++i) {
    const float gain = std::max(std::abs(skip[i]), std::abs(out[i]));
    if (gain == 0) continue;
    skip[i] /= gain;
    out[i] /= gain;
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> diffusion_loss_cpu(
    const at::Tensor& prediction, const at::Tensor& noisy, const at::Tensor& target, const at::Tensor& c_skip,
    const at::Tensor& c_out, at::TensorList banks, at::TensorList positives,
    const std::optional<at::Tensor>& temperature_tensor, double temperature,
    at::ArrayRef<double> bank_weights, const std::optional<at::Tensor>& mse_weights,
    const std::optional<at::Tensor>& contrastive_weights, const std::optional<at::Tensor>& query_groups,
    at::TensorList bank_groups, bool normalize, bool prediction_gradient) {
  // The matrix products inside are float32 on purpose.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;

  check_arguments(prediction, noisy, target, banks, positives, bank_weights, bank_groups, at::kCPU);
  Keep keep;
  cpu::Problem problem;
  problem.prediction = matrix(prediction, keep);
  problem.noisy = matrix(noisy, keep);
  problem.target = matrix(target, keep);
  const int64_t size = problem.queries = problem.prediction.rows;
  problem.elements = problem.prediction.columns;
  if (problem.noisy.dtype != problem.prediction.dtype || problem.target.dtype != problem.prediction.dtype) {
    to_float(problem.prediction, prediction, keep);
    to_float(problem.noisy, noisy, keep);
    to_float(problem.target, target, keep);
  }
  std::vector<float> skip = rows(c_skip, size, "c_skip"), out = rows(c_out, size, "c_out");
  if (normalize) bound_coefficients(skip, out);
  const std::vector<float> mse_rows = rows(mse_weights, size, "mse_weights");
  const std::vector<float> contrastive_rows = rows(contrastive_weights, size, "contrastive_weights");
  problem.c_skip = skip.data();
  problem.c_out = out.data();
  problem.mse_weights = mse_rows.data();
  problem.contrastive_weights = contrastive_rows.data();
  problem.temperature = checked_temperature(temperature_tensor, temperature);
  problem.normalize = normalize;
  if (query_groups) problem.query_groups = indices(*query_groups, size, "query_groups", keep);

  for (size_t k = 0; k < banks.size(); ++k) {
    cpu::Bank bank;
    bank.rows = matrix(banks[k], keep);
    bank.weight = bank_weights[k];
    if (!positives.empty()) {
      bank.positives = indices(positives[k], size, "positives", keep);
      for (int64_t i = 0; i < size; ++i) {
        TORCH_CHECK_VALUE(bank.positives[i] >= -1 && bank.positives[i] < bank.rows.rows, "positives[", k,
                          "] holds ", bank.positives[i], ", but the bank has ", bank.rows.rows,
                          " rows: expected -1 (none) or a row");
      }
    }
    if (!bank_groups.empty()) bank.groups = indices(bank_groups[k], bank.rows.rows, "bank_groups", keep);
    problem.banks.push_back(bank);
  }

  std::vector<float> mse(size), cross_entropy(banks.size() * size);
  problem.mse = mse.data();
  problem.cross_entropy = cross_entropy.data();
  const at::ScalarType gradient_dtype =
      prediction.scalar_type() == at::kHalf ? at::kFloat : prediction.scalar_type();
  const at::Tensor gradient =
      prediction_gradient ? at::empty(prediction.sizes(), gradient_dtype) : at::empty({0}, gradient_dtype);
  problem.gradient_dtype = gradient_dtype;
  problem.gradient = prediction_gradient ? gradient.mutable_data_ptr() : nullptr;

  if (cpu::fits_fused(problem)) {
    cpu::run_fused(problem);
  } else {
    cpu::run_strips(problem);
  }

  const auto mean = [&](const float* weights, const float* values) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(weights[i]) * values[i];
    return sum / static_cast<double>(size);
  };
  double loss = mean(problem.mse_weights, problem.mse);
  const at::Tensor loss_out = at::empty({}, at::kFloat), mse_out = at::empty({}, at::kFloat);
  const at::Tensor contrastive_out = at::empty({static_cast<int64_t>(banks.size())}, at::kFloat);
  *mse_out.mutable_data_ptr<float>() = static_cast<float>(loss);
  for (size_t k = 0; k < banks.size(); ++k) {
    const double contrastive = mean(problem.contrastive_weights, problem.cross_entropy + k * size);
    contrastive_out.mutable_data_ptr<float>()[k] = static_cast<float>(contrastive);
    loss += bank_weights[k] * contrastive;
  }
  *loss_out.mutable_data_ptr<float>() = static_cast<float>(loss);
  return {loss_out, mse_out, contrastive_out, gradient};
}

}  // namespace contrastive_i2v
