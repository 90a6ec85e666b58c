// Picks the kernels that were compiled for this processor.

#include <ATen/Version.h>

#include "kernels.h"

namespace contrastive_i2v::cpu {

extern const Kernels kernels_DEFAULT;
#ifdef CI2V_X86
extern const Kernels kernels_AVX2, kernels_AVX512;
#endif

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#ifdef CI2V_X86
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return kernels_AVX512;
    if (capability == "AVX2") return kernels_AVX2;
#endif
    return kernels_DEFAULT;
  }();
  return chosen;
}

}  // namespace contrastive_i2v::cpu
