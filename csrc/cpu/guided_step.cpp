// Guidance and the sampler's update, element by element. The latents are cut into fixed blocks: a block's
// result is in the first-level cache when its other copies are written, and no bit depends on the number of
// threads.

#include "guided_step.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define CI2V_EVERY_LEVEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CI2V_EVERY_LEVEL
#endif
#define CI2V_INLINE __attribute__((always_inline)) inline

namespace contrastive_i2v {

namespace {

constexpr int64_t kBlock = 4096;  // 16 KB of result
constexpr int64_t kGrain = 8;     // blocks that are worth a thread
constexpr size_t kMaxBranches = 3;

struct Scales {
  float sample, prediction, guidance[kMaxBranches - 1];
  size_t branches;
};

// out = a x + b (p_0 + s_0 (p_1 - p_0) + s_1 (p_2 - p_1)). The blocks of predictions are `stride` apart, p_0
// last.
template <int branches, typename T>
CI2V_INLINE void step_block(const Scales& scales, const float* __restrict x, const T* __restrict predictions,
                            int64_t stride, int64_t count, float* __restrict out) {
  const float a = scales.sample, b = scales.prediction;
  const float s0 = scales.guidance[0], s1 = scales.guidance[1];
  for (int64_t i = 0; i < count; ++i) {
    const float p0 = static_cast<float>(predictions[(branches - 1) * stride + i]);
    float guided = p0;
    if constexpr (branches > 1) {
      const float p1 = static_cast<float>(predictions[(branches - 2) * stride + i]);
      guided += s0 * (p1 - p0);
      if constexpr (branches > 2) guided += s1 * (static_cast<float>(predictions[i]) - p1);
    }
    out[i] = a * x[i] + b * guided;
  }
}

template <typename T>
CI2V_INLINE void any_step_block(const Scales& scales, const float* x, const T* predictions, int64_t stride,
                                int64_t count, float* out) {
  if (scales.branches == 1) return step_block<1>(scales, x, predictions, stride, count, out);
  if (scales.branches == 2) return step_block<2>(scales, x, predictions, stride, count, out);
  step_block<3>(scales, x, predictions, stride, count, out);
}

CI2V_EVERY_LEVEL void step(const Scales& scales, const float* x, const float* predictions, int64_t stride,
                           int64_t count, float* out) {
  any_step_block(scales, x, predictions, stride, count, out);
}

CI2V_EVERY_LEVEL void step(const Scales& scales, const float* x, const c10::BFloat16* predictions,
                           int64_t stride, int64_t count, float* out) {
  any_step_block(scales, x, predictions, stride, count, out);
}

CI2V_EVERY_LEVEL void step(const Scales& scales, const float* x, const c10::Half* predictions, int64_t stride,
                           int64_t count, float* out) {
  any_step_block(scales, x, predictions, stride, count, out);
}

template <typename T>
void run(const Scales& scales, const at::Tensor& sample, const at::Tensor& predictions, int64_t copies,
         float* out) {
  const float* x = sample.const_data_ptr<float>();
  const T* f = predictions.const_data_ptr<T>();
  const int64_t elements = sample.numel();
  at::parallel_for(0, (elements + kBlock - 1) / kBlock, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t begin = first * kBlock; begin < std::min(last * kBlock, elements); begin += kBlock) {
      const int64_t count = std::min(kBlock, elements - begin);
      step(scales, x + begin, f + begin, elements, count, out + begin);
      for (int64_t copy = 1; copy < copies; ++copy) {
        std::memcpy(out + copy * elements + begin, out + begin, count * sizeof(float));
      }
    }
  });
}

}  // namespace

at::Tensor guided_step_cpu(const at::Tensor& sample, const at::Tensor& predictions, double sample_scale,
                           double prediction_scale, at::ArrayRef<double> guidance_scales, int64_t copies) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  TORCH_CHECK_VALUE(sample.scalar_type() == at::kFloat && sample.dim() >= 1, "sample is ",
                    sample.scalar_type(), sample.sizes(), ": expected float32 [B, *latent]");
  TORCH_CHECK_VALUE(guidance_scales.size() < kMaxBranches, "guidance_scales has ", guidance_scales.size(),
                    " entries: expected at most 2, one for each branch but the first");
  TORCH_CHECK_VALUE(copies >= 1, "copies is ", copies, ": expected at least 1");
  Scales scales{
      static_cast<float>(sample_scale), static_cast<float>(prediction_scale), {}, guidance_scales.size() + 1};
  std::copy(guidance_scales.begin(), guidance_scales.end(), scales.guidance);
  TORCH_CHECK_VALUE(predictions.device().is_cpu(), "predictions is on ", predictions.device(),
                    ": expected cpu");
  std::vector<int64_t> sizes = sample.sizes().vec();
  const int64_t size = sizes[0];
  sizes[0] = size * static_cast<int64_t>(scales.branches);
  TORCH_CHECK_VALUE(predictions.sizes() == at::IntArrayRef(sizes), "predictions has shape ",
                    predictions.sizes(), ": expected ", at::IntArrayRef(sizes));

  sizes[0] = size * copies;
  const at::Tensor out = at::empty(sizes, sample.options().memory_format(at::MemoryFormat::Contiguous));
  const at::Tensor x = sample.contiguous(), f = predictions.contiguous();
  float* to = out.mutable_data_ptr<float>();
  switch (f.scalar_type()) {
    case at::kFloat:
      run<float>(scales, x, f, copies, to);
      break;
    case at::kBFloat16:
      run<c10::BFloat16>(scales, x, f, copies, to);
      break;
    case at::kHalf:
      run<c10::Half>(scales, x, f, copies, to);
      break;
    default:
      TORCH_CHECK_VALUE(false, "predictions is ", f.scalar_type(),
                        ": the cpu backend takes float32, bfloat16 and float16");
  }
  return out;
}

}  // namespace contrastive_i2v
