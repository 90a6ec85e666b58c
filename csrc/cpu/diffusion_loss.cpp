// Checks the arguments of contrastive_i2v::diffusion_loss, lays them out for the kernels and picks the regime
// by size.

#include "diffusion_loss.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>

#include "problem.h"

namespace contrastive_i2v {

namespace {

at::Tensor flatten(const at::Tensor& tensor, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " is on ", tensor.device(), ": expected cpu");
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, name, " is ", dtype,
                    ": the cpu backend takes float32, bfloat16 and float16");
  TORCH_CHECK_VALUE(tensor.dim() >= 1 && tensor.numel() > 0, name, " is empty");
  return tensor.reshape({tensor.size(0), -1}).contiguous();
}

cpu::Matrix matrix(const at::Tensor& flat) {
  return {flat.const_data_ptr(), flat.scalar_type(), flat.size(0), flat.size(1)};
}

at::Tensor row_vector(const std::optional<at::Tensor>& vector, int64_t size, const char* name) {
  if (!vector) return at::ones({size}, at::kFloat);
  TORCH_CHECK_VALUE(vector->dim() == 1 && vector->size(0) == size, name, " has shape ", vector->sizes(),
                    ": expected [", size, "]");
  return vector->to(at::kFloat).contiguous();
}

at::Tensor index(const at::Tensor& vector, int64_t size, const char* name) {
  TORCH_CHECK_VALUE(vector.scalar_type() == at::kLong && vector.dim() == 1 && vector.size(0) == size, name,
                    " is ", vector.scalar_type(), vector.sizes(), ": expected int64 [", size, "]");
  return vector.contiguous();
}

double checked_temperature(const std::optional<at::Tensor>& tensor, double number) {
  if (!tensor) return number;
  const double value = tensor->item().toDouble();
  TORCH_CHECK_VALUE(!(value <= 0), "temperature is ", value, ": expected a value > 0");
  return value + 0 * value;  // infinity becomes NaN, not a silently flat softmax
}

// The cosine does not see a row's scale, so over the larger of the two: abar -> 0 cannot overflow |x0|^2.
void bound_coefficients(at::Tensor& skip, at::Tensor& out) {
  skip = skip.clone();
  out = out.clone();
  float *a = skip.mutable_data_ptr<float>(), *b = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < skip.numel(); ++i) {
    const float gain = std::max(std::abs(a[i]), std::abs(b[i]));
    if (gain == 0) continue;
    a[i] /= gain;
    b[i] /= gain;
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

  const at::Tensor f = flatten(prediction, "prediction");
  const at::Tensor x = flatten(noisy, "noisy");
  const at::Tensor y = flatten(target, "target");
  const int64_t size = f.size(0);
  TORCH_CHECK_VALUE(x.sizes() == f.sizes(), "noisy has shape ", noisy.sizes(), ": expected ",
                    prediction.sizes());
  TORCH_CHECK_VALUE(y.sizes() == f.sizes(), "target has shape ", target.sizes(), ": expected ",
                    prediction.sizes());
  TORCH_CHECK_VALUE(bank_weights.size() == banks.size() &&
                        (positives.empty() || positives.size() == banks.size()) &&
                        (bank_groups.empty() || bank_groups.size() == banks.size()),
                    "expected one entry a bank in bank_weights, positives and bank_groups");
  at::Tensor skip = row_vector(c_skip, size, "c_skip");
  at::Tensor out = row_vector(c_out, size, "c_out");
  if (normalize) bound_coefficients(skip, out);
  const at::Tensor mse_rows = row_vector(mse_weights, size, "mse_weights");
  const at::Tensor contrastive_rows = row_vector(contrastive_weights, size, "contrastive_weights");

  cpu::Problem problem;
  problem.queries = size;
  problem.elements = f.size(1);
  problem.prediction = matrix(f);
  problem.noisy = matrix(x);
  problem.target = matrix(y);
  problem.c_skip = skip.const_data_ptr<float>();
  problem.c_out = out.const_data_ptr<float>();
  problem.mse_weights = mse_rows.const_data_ptr<float>();
  problem.contrastive_weights = contrastive_rows.const_data_ptr<float>();
  problem.temperature = checked_temperature(temperature_tensor, temperature);
  problem.normalize = normalize;

  std::vector<at::Tensor> keep;  // what the raw pointers point into
  if (query_groups) {
    keep.push_back(index(*query_groups, size, "query_groups"));
    problem.query_groups = keep.back().const_data_ptr<int64_t>();
  }
  for (size_t k = 0; k < banks.size(); ++k) {
    cpu::Bank bank;
    keep.push_back(flatten(banks[k], "a bank"));
    bank.rows = matrix(keep.back());
    bank.weight = bank_weights[k];
    TORCH_CHECK_VALUE(bank.rows.columns == problem.elements, "banks[", k, "] has ", bank.rows.columns,
                      " elements a row: expected ", problem.elements);
    if (!positives.empty()) {
      keep.push_back(index(positives[k], size, "positives"));
      bank.positives = keep.back().const_data_ptr<int64_t>();
      for (int64_t i = 0; i < size; ++i) {
        TORCH_CHECK_VALUE(bank.positives[i] >= -1 && bank.positives[i] < bank.rows.rows, "positives[", k,
                          "] holds ", bank.positives[i], ", but the bank has ", bank.rows.rows,
                          " rows: expected -1 (none) or a row");
      }
    }
    TORCH_CHECK_VALUE(bank.positives || bank.rows.rows >= size, "banks[", k, "] has ", bank.rows.rows,
                      " rows for ", size, " queries: pass positives");
    if (!bank_groups.empty()) {
      keep.push_back(index(bank_groups[k], bank.rows.rows, "bank_groups"));
      bank.groups = keep.back().const_data_ptr<int64_t>();
    }
    problem.banks.push_back(bank);
  }

  std::vector<float> mse(size), cross_entropy(banks.size() * size);
  problem.mse = mse.data();
  problem.cross_entropy = cross_entropy.data();
  const at::ScalarType gradient_dtype = f.scalar_type() == at::kHalf ? at::kFloat : f.scalar_type();
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
