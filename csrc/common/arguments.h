// Checks of contrastive_i2v::diffusion_loss's arguments that need no value of a tensor, so that they hold on
// any device without waiting for it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace contrastive_i2v {

// Latents or a bank [rows, *latent]: on `device`; float32, bfloat16 or float16.
inline void check_latents(const at::Tensor& tensor, const char* name, at::Device device) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_VALUE(tensor.device() == device, name, " is on ", tensor.device(), ": expected ", device);
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, name, " is ", dtype,
                    ": the fused op takes float32, bfloat16 and float16");
  TORCH_CHECK_VALUE(tensor.dim() >= 2 && tensor.numel() > 0, name, " has shape ", tensor.sizes(),
                    ": expected [rows, *latent] with at least one element");
}

// Latents and banks, and what the lists have to agree on.
inline void check_arguments(const at::Tensor& prediction, const at::Tensor& noisy, const at::Tensor& target,
                            at::TensorList banks, at::TensorList positives, at::ArrayRef<double> bank_weights,
                            at::TensorList bank_groups, at::Device device) {
  check_latents(prediction, "prediction", device);
  check_latents(noisy, "noisy", device);
  check_latents(target, "target", device);
  TORCH_CHECK_VALUE(noisy.sizes() == prediction.sizes(), "noisy has shape ", noisy.sizes(), ": expected ",
                    prediction.sizes());
  TORCH_CHECK_VALUE(target.sizes() == prediction.sizes(), "target has shape ", target.sizes(), ": expected ",
                    prediction.sizes());
  TORCH_CHECK_VALUE(bank_weights.size() == banks.size() &&
                        (positives.empty() || positives.size() == banks.size()) &&
                        (bank_groups.empty() || bank_groups.size() == banks.size()),
                    "expected one entry a bank in bank_weights, positives and bank_groups");
  for (size_t k = 0; k < banks.size(); ++k) {
    check_latents(banks[k], "a bank", device);
    TORCH_CHECK_VALUE(banks[k].sizes().slice(1) == prediction.sizes().slice(1), "banks[", k, "] has shape ",
                      banks[k].sizes(), ": expected [N] and ", prediction.sizes().slice(1));
    TORCH_CHECK_VALUE(!positives.empty() || banks[k].size(0) >= prediction.size(0), "banks[", k, "] has ",
                      banks[k].size(0), " rows for ", prediction.size(0), " queries: pass positives");
  }
}

// [size] float32, contiguous and on `device`.
inline at::Tensor row_vector(const at::Tensor& vector, int64_t size, const char* name, at::Device device) {
  TORCH_CHECK_VALUE(vector.device() == device, name, " is on ", vector.device(), ": expected ", device);
  TORCH_CHECK_VALUE(vector.dim() == 1 && vector.size(0) == size && vector.is_floating_point(), name, " is ",
                    vector.scalar_type(), vector.sizes(), ": expected floating [", size, "]");
  return vector.to(at::kFloat).contiguous();
}

// [size] int64, contiguous and on `device`.
inline at::Tensor index_vector(const at::Tensor& vector, int64_t size, const char* name, at::Device device) {
  TORCH_CHECK_VALUE(vector.device() == device, name, " is on ", vector.device(), ": expected ", device);
  TORCH_CHECK_VALUE(vector.scalar_type() == at::kLong && vector.dim() == 1 && vector.size(0) == size, name,
                    " is ", vector.scalar_type(), vector.sizes(), ": expected int64 [", size, "]");
  return vector.contiguous();
}

}  // namespace contrastive_i2v
