// The single launch, as host code sees it.
#pragma once

#include <cuda_runtime_api.h>

#include "problem.h"

namespace contrastive_i2v::cuda {

enum class Element { kFloat, kBFloat16, kHalf };

// What the current device can hold. Asked once a device and dtype; never waits for the device.
cudaError_t read_limits(Element element, small::Limits* limits);

// One kernel on `stream`.
cudaError_t launch(Element element, const Problem& problem, cudaStream_t stream);

}  // namespace contrastive_i2v::cuda
