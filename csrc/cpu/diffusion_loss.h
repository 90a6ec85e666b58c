// contrastive_i2v::diffusion_loss on the CPU. The equations and the arguments are those of
// contrastive_i2v/ops/reference.py; the gradient goes to the prediction only.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace contrastive_i2v {

// (loss [], mse [], contrastive [K], grad_prediction like prediction, or [0] when not asked for)
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> diffusion_loss_cpu(
    const at::Tensor& prediction, const at::Tensor& noisy, const at::Tensor& target, const at::Tensor& c_skip,
    const at::Tensor& c_out, at::TensorList banks, at::TensorList positives,
    const std::optional<at::Tensor>& temperature_tensor, double temperature,
    at::ArrayRef<double> bank_weights, const std::optional<at::Tensor>& mse_weights,
    const std::optional<at::Tensor>& contrastive_weights, const std::optional<at::Tensor>& query_groups,
    at::TensorList bank_groups, bool normalize, bool prediction_gradient);

}  // namespace contrastive_i2v
