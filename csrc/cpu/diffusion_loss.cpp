// Checks the arguments of contrastive_i2v::diffusion_loss, lays them out for the kernels and picks the regime
// by size.

#include "diffusion_loss.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "problem.h"

namespace contrastive_i2v {

namespace {

// Keeps whatever the raw pointers point into.
using Keep = std::vector<at::Tensor>;

cpu::Matrix matrix(const at::Tensor& tensor, const char* name, Keep& keep) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " is on ", tensor.device(), ": expected cpu");
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, name, " is ", dtype,
                    ": the cpu backend takes float32, bfloat16 and float16");
  TORCH_CHECK_VALUE(tensor.dim() >= 2 && tensor.numel() > 0, name, " has shape ", tensor.sizes(),
                    ": expected [rows, *latent] with at least one element");
  keep.push_back(tensor.contiguous());
  return {keep.back().const_data_ptr(), dtype, tensor.size(0), tensor.numel() / tensor.size(0)};
}

void to_float(cpu::Matrix& matrix, const at::Tensor& tensor, Keep& keep) {
  keep.push_back(tensor.to(at::kFloat).contiguous());
  matrix.data = keep.back().const_data_ptr();
  matrix.dtype = at::kFloat;
}

std::vector<float> row_vector(const std::optional<at::Tensor>& vector, int64_t size, const char* name) {
  if (!vector) return std::vector<float>(size, 1.0f);
  TORCH_CHECK_VALUE(vector->dim() == 1 && vector->size(0) == size && vector->is_floating_point() &&
                        vector->device().is_cpu(),
                    name, " is ", vector->scalar_type(), vector->sizes(), " on ", vector->device(),
                    ": expected floating [", size, "] on cpu");
  const at::Tensor values = vector->to(at::kFloat).contiguous();
  return std::vector<float>(values.const_data_ptr<float>(), values.const_data_ptr<float>() + size);
}

const int64_t* index(const at::Tensor& vector, int64_t size, const char* name, Keep& keep) {
  TORCH_CHECK_VALUE(vector.scalar_type() == at::kLong && vector.dim() == 1 && vector.size(0) == size &&
                        vector.device().is_cpu(),
                    name, " is ", vector.scalar_type(), vector.sizes(), " on ", vector.device(),
                    ": expected int64 [", size, "] on cpu");
  keep.push_back(vector.contiguous());
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

  Keep keep;
  cpu::Problem problem;
  problem.prediction = matrix(prediction, "prediction", keep);
  problem.noisy = matrix(noisy, "noisy", keep);
  problem.target = matrix(target, "target", keep);
  const int64_t size = problem.queries = problem.prediction.rows;
  problem.elements = problem.prediction.columns;
  TORCH_CHECK_VALUE(noisy.sizes() == prediction.sizes(), "noisy has shape ", noisy.sizes(), ": expected ",
                    prediction.sizes());
  TORCH_CHECK_VALUE(target.sizes() == prediction.sizes(), "target has shape ", target.sizes(), ": expected ",
                    prediction.sizes());
  if (problem.noisy.dtype != problem.prediction.dtype || problem.target.dtype != problem.prediction.dtype) {
    to_float(problem.prediction, prediction, keep);
    to_float(problem.noisy, noisy, keep);
    to_float(problem.target, target, keep);
  }
  TORCH_CHECK_VALUE(bank_weights.size() == banks.size() &&
                        (positives.empty() || positives.size() == banks.size()) &&
                        (bank_groups.empty() || bank_groups.size() == banks.size()),
                    "expected one entry a bank in bank_weights, positives and bank_groups");
  std::vector<float> skip = row_vector(c_skip, size, "c_skip"), out = row_vector(c_out, size, "c_out");
  if (normalize) bound_coefficients(skip, out);
  const std::vector<float> mse_rows = row_vector(mse_weights, size, "mse_weights");
  const std::vector<float> contrastive_rows = row_vector(contrastive_weights, size, "contrastive_weights");
  problem.c_skip = skip.data();
  problem.c_out = out.data();
  problem.mse_weights = mse_rows.data();
  problem.contrastive_weights = contrastive_rows.data();
  problem.temperature = checked_temperature(temperature_tensor, temperature);
  problem.normalize = normalize;
  if (query_groups) problem.query_groups = index(*query_groups, size, "query_groups", keep);

  for (size_t k = 0; k < banks.size(); ++k) {
    cpu::Bank bank;
    bank.rows = matrix(banks[k], "a bank", keep);
    bank.weight = bank_weights[k];
    TORCH_CHECK_VALUE(banks[k].sizes().slice(1) == prediction.sizes().slice(1), "banks[", k, "] has shape ",
                      banks[k].sizes(), ": expected [N] and ", prediction.sizes().slice(1));
    if (!positives.empty()) {
      bank.positives = index(positives[k], size, "positives", keep);
      for (int64_t i = 0; i < size; ++i) {
        TORCH_CHECK_VALUE(bank.positives[i] >= -1 && bank.positives[i] < bank.rows.rows, "positives[", k,
                          "] holds ", bank.positives[i], ", but the bank has ", bank.rows.rows,
                          " rows: expected -1 (none) or a row");
      }
    }
    TORCH_CHECK_VALUE(bank.positives || bank.rows.rows >= size, "banks[", k, "] has ", bank.rows.rows,
                      " rows for ", size, " queries: pass positives");
    if (!bank_groups.empty()) bank.groups = index(bank_groups[k], bank.rows.rows, "bank_groups", keep);
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
