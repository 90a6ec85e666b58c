// Autograd of contrastive_i2v::diffusion_loss in C++, registered where the compiled kernels are: what
// contrastive_i2v/ops/_schema.py does for every other device, at a tenth of the cost of a call.

#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace contrastive_i2v {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, mse, contrastive, grad_prediction
using DiffusionLoss = Outputs(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                              at::TensorList, at::TensorList, const std::optional<Tensor>&, double,
                              at::ArrayRef<double>, const std::optional<Tensor>&,
                              const std::optional<Tensor>&, const std::optional<Tensor>&, at::TensorList,
                              bool, bool);
using ScaleGradient = Tensor(const Tensor&, const Tensor&, at::ScalarType);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

bool is_plain_cpu(const Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.key_set().has(c10::DispatchKey::CPU) &&
         !tensor.key_set().has_any(c10::DispatchKeySet(
             {c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
              c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched}));
}

// The gradient that the forward pass has already made, scaled by the incoming one.
struct GradientOfForward : torch::autograd::Function<GradientOfForward> {
  template <typename Forward>
  static variable_list forward(AutogradContext* context, const Tensor& prediction, bool prediction_gradient,
                               const Forward& run) {
    const at::AutoDispatchBelowAutograd guard;
    auto [loss, mse, contrastive, gradient] = run();
    context->mark_non_differentiable({mse, contrastive, gradient});
    context->set_materialize_grads(false);
    context->save_for_backward({gradient});
    context->saved_data["computed"] = prediction_gradient;
    context->saved_data["dtype"] = static_cast<int64_t>(prediction.scalar_type());
    return {loss, mse, contrastive, gradient};
  }

  static variable_list backward(AutogradContext* context, const variable_list& incoming) {
    // With create_graph=True what follows would silently lack the prediction's part.
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "contrastive_diffusion_loss has no second derivative, as its gradient is made in the forward "
                "pass: call backward without create_graph=True");
    TORCH_CHECK(context->saved_data["computed"].toBool(),
                "prediction requires a gradient that this call was told not to compute");
    const Tensor& grad_loss = incoming[0];
    if (!grad_loss.defined()) return {Tensor(), Tensor(), Tensor()};
    const Tensor gradient = context->get_saved_variables()[0];
    const auto dtype = static_cast<at::ScalarType>(context->saved_data["dtype"].toInt());
    // loss.backward(): nothing to scale. Whoever changes the result in place and asks again with
    // retain_graph=True is told so by autograd's version check.
    if (is_plain_cpu(grad_loss) && is_plain_cpu(gradient) && gradient.scalar_type() == dtype &&
        grad_loss.scalar_type() == at::kFloat && *grad_loss.const_data_ptr<float>() == 1) {
      return {gradient, Tensor(), Tensor()};
    }
    static const auto scale = find<ScaleGradient>("contrastive_i2v::scale_gradient");
    return {scale.call(gradient, grad_loss, dtype), Tensor(), Tensor()};
  }
};

Outputs diffusion_loss_autograd(const Tensor& prediction, const Tensor& noisy, const Tensor& target,
                                const Tensor& c_skip, const Tensor& c_out, at::TensorList banks,
                                at::TensorList positives, const std::optional<Tensor>& temperature_tensor,
                                double temperature, at::ArrayRef<double> bank_weights,
                                const std::optional<Tensor>& mse_weights,
                                const std::optional<Tensor>& contrastive_weights,
                                const std::optional<Tensor>& query_groups, at::TensorList bank_groups,
                                bool normalize, bool prediction_gradient) {
  static const auto op = find<DiffusionLoss>("contrastive_i2v::diffusion_loss");
  const auto run = [&] {
    return op.call(prediction, noisy, target, c_skip, c_out, banks, positives, temperature_tensor,
                   temperature, bank_weights, mse_weights, contrastive_weights, query_groups, bank_groups,
                   normalize, prediction_gradient);
  };
  if (at::GradMode::is_enabled()) {
    const auto refuse = [](const std::optional<Tensor>& tensor, const char* name) {
      TORCH_CHECK_VALUE(!tensor || !tensor->requires_grad(), name,
                        " requires a gradient, but this op gives one to prediction alone: detach it");
    };
    refuse(noisy, "noisy");
    refuse(target, "target");
    refuse(c_skip, "c_skip");
    refuse(c_out, "c_out");
    for (const Tensor& bank : banks) refuse(bank, "a bank");
    refuse(temperature_tensor, "temperature");
    refuse(mse_weights, "mse_weights");
    refuse(contrastive_weights, "contrastive_weights");
    if (prediction.requires_grad()) {
      variable_list out = GradientOfForward::apply(prediction, prediction_gradient, run);
      return {out[0], out[1], out[2], out[3]};
    }
  }
  const at::AutoDispatchBelowAutograd guard;
  return run();
}

// In grad_loss's own float32: float16 cannot hold a loss scale of 65536, bfloat16 rounds one third.
Tensor scale_gradient(const Tensor& gradient, const Tensor& grad_loss, at::ScalarType dtype) {
  return at::mul(gradient.to(grad_loss.scalar_type()), grad_loss).to(dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(contrastive_i2v, AutogradCPU, m) { m.impl("diffusion_loss", diffusion_loss_autograd); }

TORCH_LIBRARY_IMPL(contrastive_i2v, AutogradCUDA, m) { m.impl("diffusion_loss", diffusion_loss_autograd); }

TORCH_LIBRARY_IMPL(contrastive_i2v, CPU, m) { m.impl("scale_gradient", scale_gradient); }

TORCH_LIBRARY_IMPL(contrastive_i2v, CUDA, m) { m.impl("scale_gradient", scale_gradient); }

}  // namespace contrastive_i2v
