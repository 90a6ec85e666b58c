// Checks of contrastive_i2v::diffusion_loss's arguments that need no value of a tensor, so that they hold on
// any device without waiting for it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace contrastive_i2v {

// [rows, D], contiguous and on `device`; float32, bfloat16 or float16.
inline at::Tensor flat_latents(const at::Tensor& tensor, const char* name, at::Device device) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_VALUE(tensor.device() == device, name, " is on ", tensor.device(), ": expected ", device);
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, name, " is ", dtype,
                    ": the fused op takes float32, bfloat16 and float16");
  TORCH_CHECK_VALUE(tensor.dim() >= 1 && tensor.numel() > 0, name, " is empty");
  return tensor.reshape({tensor.size(0), -1}).contiguous();
}

// [size] float32, contiguous and on `device`.
inline at::Tensor row_vector(const at::Tensor& vector, int64_t size, const char* name, at::Device device) {
  TORCH_CHECK_VALUE(vector.device() == device, name, " is on ", vector.device(), ": expected ", device);
  TORCH_CHECK_VALUE(vector.dim() == 1 && vector.size(0) == size, name, " has shape ", vector.sizes(),
                    ": expected [", size, "]");
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
