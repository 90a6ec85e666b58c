// contrastive_i2v::guided_step on the CPU. The equation and the arguments are those of guided_step_reference
// in contrastive_i2v/ops/guided_step.py.
#pragma once

#include <ATen/core/Tensor.h>

namespace contrastive_i2v {

// x' [copies * B, *latent] float32
at::Tensor guided_step_cpu(const at::Tensor& sample, const at::Tensor& predictions, double sample_scale,
                           double prediction_scale, at::ArrayRef<double> guidance_scales, int64_t copies);

}  // namespace contrastive_i2v
