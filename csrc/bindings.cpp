// The Python module `contrastive_i2v._C`: what it was built with, and the table of kernels. Schemas live in
// Python.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include "cpu/diffusion_loss.h"
#include "cpu/guided_step.h"
#ifdef CI2V_CUDA
#include "cuda/diffusion_loss.h"
#endif

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
#ifdef CI2V_CUDA
  m.def("diffusion_loss_cuda_fits", &contrastive_i2v::diffusion_loss_cuda_fits,
        "Whether the single-launch kernel holds this problem on the current device.", py::arg("queries"),
        py::arg("candidates"), py::arg("elements"), py::arg("element_size"));
#endif
}

TORCH_LIBRARY_IMPL(contrastive_i2v, CPU, m) {
  m.impl("diffusion_loss", &contrastive_i2v::diffusion_loss_cpu);
  m.impl("guided_step", &contrastive_i2v::guided_step_cpu);
}
