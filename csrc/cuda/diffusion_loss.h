// contrastive_i2v::diffusion_loss on a CUDA device, in one launch, for problems that fit into its shared
// memory. The equations and the arguments are those of contrastive_i2v/ops/reference.py; the gradient goes to
// the prediction only.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace contrastive_i2v {

// (loss [], mse [], contrastive [K], grad_prediction like prediction, or [0] when not asked for). Latents and
// banks of one dtype are taken as they are; where they differ all are converted to float32. Never waits for
// the device: a positive out of range or a temperature tensor <= 0 makes the loss NaN.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> diffusion_loss_cuda(
    const at::Tensor& prediction, const at::Tensor& noisy, const at::Tensor& target, const at::Tensor& c_skip,
    const at::Tensor& c_out, at::TensorList banks, at::TensorList positives,
    const std::optional<at::Tensor>& temperature_tensor, double temperature,
    at::ArrayRef<double> bank_weights, const std::optional<at::Tensor>& mse_weights,
    const std::optional<at::Tensor>& contrastive_weights, const std::optional<at::Tensor>& query_groups,
    at::TensorList bank_groups, bool normalize, bool prediction_gradient);

// Whether diffusion_loss_cuda takes `queries` [B, D = elements] and banks of `candidates` rows on the current
// device. `element_size`: bytes of a latent's element, 4 where dtypes differ.
bool diffusion_loss_cuda_fits(int64_t queries, const std::vector<int64_t>& candidates, int64_t elements,
                              int64_t element_size);

}  // namespace contrastive_i2v
