// The single launch: the kernel's entry points, and what the host asks a device before it launches one.

#include <mutex>

// clang-format off
#include "chip.cuh"
#include "kernel.cuh"
// clang-format on
#include "launch.h"

namespace contrastive_i2v::cuda {

namespace {

using small::kThreads;

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    diffusion_loss_kernel(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) char shared[];
  run<T>(problem, shared);
}

const void* kernel_of(Element element) {
  switch (element) {
    case Element::kBFloat16:
      return reinterpret_cast<const void*>(&diffusion_loss_kernel<bfloat16>);
    case Element::kHalf:
      return reinterpret_cast<const void*>(&diffusion_loss_kernel<half>);
    default:
      return reinterpret_cast<const void*>(&diffusion_loss_kernel<float>);
  }
}

struct LaunchConfig {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};

  LaunchConfig(int ctas, int cluster, int shared_bytes, cudaStream_t stream) {
    config.gridDim = dim3(ctas);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 1;
    attributes[0].id = cudaLaunchAttributeCooperative;
    attributes[0].val.cooperative = 1;
    if (cluster > 1) {
      attributes[1].id = cudaLaunchAttributeClusterDimension;
      attributes[1].val.clusterDim.x = cluster;
      attributes[1].val.clusterDim.y = 1;
      attributes[1].val.clusterDim.z = 1;
      config.numAttrs = 2;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
};

#define CI2V_RETURN_IF_ERROR(call) \
  if (const cudaError_t status = (call); status != cudaSuccess) return status

cudaError_t ask_device(int device, const void* kernel, small::Limits* limits) {
  int processors = 0, cooperative = 0, shared_bytes = 0;
  CI2V_RETURN_IF_ERROR(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  CI2V_RETURN_IF_ERROR(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  CI2V_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  cudaFuncAttributes attributes;
  CI2V_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, kernel));
  CI2V_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  small::Limits found;
  if (cooperative) {
    found.shared_bytes = shared_bytes;
    found.ctas[0] = processors;  // one a multiprocessor, however much shared memory each takes
    // Code made from compute_80 has no cluster instructions, wherever it runs.
    const bool clusters = attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
    for (int power = 1; clusters && power < 4; ++power) {
      LaunchConfig launch(8, 1 << power, shared_bytes, nullptr);
      launch.config.attrs = launch.attributes + 1;  // the shape alone
      launch.config.numAttrs = 1;
      int count = 0;
      CI2V_RETURN_IF_ERROR(cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config));
      found.ctas[power] = count << power;
    }
  }
  *limits = found;
  return cudaSuccess;
}

}  // namespace

cudaError_t read_limits(Element element, small::Limits* limits) {
  constexpr int devices = 64;
  static std::mutex mutex;
  static bool known[devices][3];
  static small::Limits table[devices][3];
  int device = 0;
  CI2V_RETURN_IF_ERROR(cudaGetDevice(&device));
  if (device >= devices) return cudaErrorInvalidDevice;
  const std::lock_guard<std::mutex> lock(mutex);
  const int which = static_cast<int>(element);
  if (!known[device][which]) {
    CI2V_RETURN_IF_ERROR(ask_device(device, kernel_of(element), &table[device][which]));
    known[device][which] = true;
  }
  *limits = table[device][which];
  return cudaSuccess;
}

cudaError_t launch(Element element, const Problem& problem, cudaStream_t stream) {
  const small::Plan& plan = problem.plan;
  LaunchConfig launch(plan.ctas(), plan.cluster, plan.shared.bytes, stream);
  void* arguments[] = {const_cast<Problem*>(&problem)};
  return cudaLaunchKernelExC(&launch.config, kernel_of(element), arguments);
}

}  // namespace contrastive_i2v::cuda
