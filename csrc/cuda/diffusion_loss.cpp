// Checks the arguments of contrastive_i2v::diffusion_loss, lays them out for the kernel, allocates and
// launches.

#include "diffusion_loss.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "../common/arguments.h"
#include "launch.h"

namespace contrastive_i2v {

namespace {

constexpr int64_t kMaxRows = 1 << 20;  // far above what fits, far below where an int overflows

cuda::Element element_of(at::ScalarType dtype) {
  if (dtype == at::kBFloat16) return cuda::Element::kBFloat16;
  return dtype == at::kHalf ? cuda::Element::kHalf : cuda::Element::kFloat;
}

small::Limits limits_of(cuda::Element element) {
  small::Limits limits;
  C10_CUDA_CHECK(cuda::read_limits(element, &limits));
  return limits;
}

}  // namespace

bool diffusion_loss_cuda_fits(int64_t queries, const std::vector<int64_t>& candidates, int64_t elements,
                              int64_t element_size) {
  const small::Limits limits =
      limits_of(element_size == 4 ? cuda::Element::kFloat : cuda::Element::kBFloat16);
  int64_t padded = 0;
  for (const int64_t count : candidates) {
    if (count > kMaxRows) return false;
    padded += small::round_up(static_cast<int>(count), small::kGranule);
  }
  return small::make_plan(queries, padded, elements, static_cast<int>(candidates.size()),
                          static_cast<int>(element_size), limits)
      .fits();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> diffusion_loss_cuda(
    const at::Tensor& prediction, const at::Tensor& noisy, const at::Tensor& target, const at::Tensor& c_skip,
    const at::Tensor& c_out, at::TensorList banks, at::TensorList positives,
    const std::optional<at::Tensor>& temperature_tensor, double temperature,
    at::ArrayRef<double> bank_weights, const std::optional<at::Tensor>& mse_weights,
    const std::optional<at::Tensor>& contrastive_weights, const std::optional<at::Tensor>& query_groups,
    at::TensorList bank_groups, bool normalize, bool prediction_gradient) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const at::Device device = prediction.device();
  const c10::cuda::CUDAGuard guard(device);

  check_arguments(prediction, noisy, target, banks, positives, bank_weights, bank_groups, device);
  std::vector<at::Tensor> latents = {prediction, noisy, target};
  latents.insert(latents.end(), banks.begin(), banks.end());
  for (at::Tensor& tensor : latents) tensor = tensor.reshape({tensor.size(0), -1}).contiguous();
  const int64_t size = latents[0].size(0), elements = latents[0].size(1);
  at::ScalarType dtype = latents[0].scalar_type();
  if (std::any_of(latents.begin(), latents.end(), [&](const auto& t) { return t.scalar_type() != dtype; })) {
    dtype = at::kFloat;
    for (at::Tensor& tensor : latents) tensor = tensor.to(dtype);
  }
  const int element_size = static_cast<int>(latents[0].element_size());
  const int count = static_cast<int>(banks.size());
  TORCH_CHECK(count <= small::kMaxBanks, "backend='cuda' takes at most ", small::kMaxBanks, " banks, got ",
              count, ": use backend='triton'");

  cuda::Problem problem;
  std::vector<at::Tensor> keep;  // what the raw pointers point into
  const auto rows = [&](const std::optional<at::Tensor>& vector, const char* name) -> const float* {
    if (!vector) return nullptr;
    keep.push_back(row_vector(*vector, size, name, device));
    return keep.back().const_data_ptr<float>();
  };
  const auto indices = [&](const at::Tensor& vector, int64_t length, const char* name) {
    keep.push_back(index_vector(vector, length, name, device));
    return keep.back().const_data_ptr<int64_t>();
  };
  problem.prediction = latents[0].const_data_ptr();
  problem.noisy = latents[1].const_data_ptr();
  problem.target = latents[2].const_data_ptr();
  problem.c_skip = rows(c_skip, "c_skip");
  problem.c_out = rows(c_out, "c_out");
  problem.mse_weights = rows(mse_weights, "mse_weights");
  problem.contrastive_weights = rows(contrastive_weights, "contrastive_weights");
  if (query_groups) problem.query_groups = indices(*query_groups, size, "query_groups");
  problem.temperature = temperature;
  if (temperature_tensor) {
    TORCH_CHECK_VALUE(temperature_tensor->numel() == 1, "temperature has shape ", temperature_tensor->sizes(),
                      ": expected one element");
    keep.push_back(row_vector(temperature_tensor->reshape({1}), 1, "temperature", device));
    problem.temperature_tensor = keep.back().const_data_ptr<float>();
  }
  problem.normalize = normalize;
  for (int k = 0; k < count; ++k) {
    const at::Tensor& rows_of_bank = latents[3 + k];
    TORCH_CHECK(rows_of_bank.size(0) <= kMaxRows, "banks[", k, "] has ", rows_of_bank.size(0),
                " rows, too many for backend='cuda': use backend='triton'");
    cuda::Bank& bank = problem.banks[k];
    bank.rows = rows_of_bank.const_data_ptr();
    bank.count = static_cast<int>(rows_of_bank.size(0));
    bank.weight = bank_weights[k];
    if (!positives.empty()) bank.positives = indices(positives[k], size, "positives");
    if (!bank_groups.empty()) bank.groups = indices(bank_groups[k], bank.count, "bank_groups");
  }

  const cuda::Element element = element_of(dtype);
  const small::Limits limits = limits_of(element);
  const int64_t candidates = cuda::place_banks(problem, count);
  problem.plan = small::make_plan(size, candidates, elements, count, element_size, limits);
  TORCH_CHECK(problem.plan.fits(), "backend='cuda' does not fit ", size, " queries and ", candidates,
              " candidates of ", elements, " elements in ", dtype, " into the shared memory of ",
              limits.ctas[0], " multiprocessors with ", limits.shared_bytes,
              " bytes each: use backend='triton'");
  problem.aligned = cuda::rows_are_aligned(problem, count, elements, element_size);

  const at::TensorOptions options = at::TensorOptions().device(device).dtype(at::kFloat);
  const at::Tensor loss = at::empty({}, options), mse = at::empty({}, options);
  const at::Tensor contrastive = at::empty({count}, options);
  const at::Tensor workspace =
      at::empty({static_cast<int64_t>(problem.plan.workspace.bytes)}, options.dtype(at::kByte));
  const at::ScalarType written = dtype == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
  const at::Tensor gradient = prediction_gradient ? at::empty(prediction.sizes(), options.dtype(written))
                                                  : at::empty({0}, options.dtype(written));
  problem.loss = loss.mutable_data_ptr<float>();
  problem.mse = mse.mutable_data_ptr<float>();
  problem.contrastive = contrastive.mutable_data_ptr<float>();
  problem.workspace = static_cast<char*>(workspace.mutable_data_ptr());
  problem.gradient = prediction_gradient ? gradient.mutable_data_ptr() : nullptr;
  C10_CUDA_CHECK(cuda::launch(element, problem, c10::cuda::getCurrentCUDAStream()));

  const bool kept_in_float = prediction.scalar_type() != at::kBFloat16;
  return {loss, mse, contrastive, gradient.to(kept_in_float ? at::kFloat : at::kBFloat16)};
}

}  // namespace contrastive_i2v

TORCH_LIBRARY_IMPL(contrastive_i2v, CUDA, m) {
  m.impl("diffusion_loss", &contrastive_i2v::diffusion_loss_cuda);
}
