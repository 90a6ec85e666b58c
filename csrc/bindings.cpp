// The Python module `contrastive_i2v._C`: what it was built with, and the table of kernels. Schemas live in
// Python.

#include <pybind11/pybind11.h>
#include <torch/library.h>

#include "cpu/diffusion_loss.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = CI2V_VERSION;
  info["torch"] = CI2V_TORCH_VERSION;
  info["compiler"] = CI2V_COMPILER;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cuda_architectures"] = CI2V_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of contrastive_i2v; importing it registers them with torch.";
  m.def("build_info", &build_info, "What this extension was built with.");
}

TORCH_LIBRARY_IMPL(contrastive_i2v, CPU, m) {
  m.impl("diffusion_loss", &contrastive_i2v::diffusion_loss_cpu);
}
