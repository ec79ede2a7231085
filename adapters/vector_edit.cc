#include "adapters/vector_edit.h"

#include <optional>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace graft::adapters {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::ScalarType ComputeType(const torch::Tensor& h) {
  return at::promote_types(at::kFloat, h.scalar_type());
}

torch::Tensor ScaleAndShift(const torch::Tensor& h, const torch::Tensor& scale,
                            const torch::Tensor& bias) {
  const torch::Tensor wide = h.to(ComputeType(h));
  return (bias.defined() ? at::addcmul(bias, wide, scale) : wide * scale).to(h.scalar_type());
}

// h' = s (.) h + beta: ds = sum_n g (.) h, dbeta = sum_n g, dh = s (.) g.
class ScaleFunction : public torch::autograd::Function<ScaleFunction> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& h,
                               const torch::Tensor& scale,
                               const std::optional<torch::Tensor>& bias) {
    ctx->save_for_backward({h, scale});
    ctx->saved_data["has_bias"] = bias.has_value();
    return ScaleAndShift(h, scale, bias.value_or(torch::Tensor()));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const torch::Tensor &h = saved[0], &scale = saved[1];
    const torch::Tensor g = gradients[0].to(ComputeType(h));
    torch::Tensor dh, dscale, dbias;
    if (ctx->needs_input_grad(0)) dh = (g * scale).to(h.scalar_type());
    if (ctx->needs_input_grad(1)) dscale = (g * h).sum(0).to(scale.scalar_type());
    if (ctx->saved_data.at("has_bias").toBool() && ctx->needs_input_grad(2))
      dbias = g.sum(0).to(scale.scalar_type());
    return {dh, dscale, dbias};
  }
};

// h' = h + beta, keeping nothing.
class ShiftFunction : public torch::autograd::Function<ShiftFunction> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& h,
                               const torch::Tensor& bias, bool in_place) {
    ctx->saved_data["dtype"] = static_cast<int64_t>(bias.scalar_type());
    if (!in_place) return (h + bias).to(h.scalar_type());
    h.add_(bias);
    ctx->mark_dirty({h});
    return h;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto dtype = static_cast<at::ScalarType>(ctx->saved_data.at("dtype").toInt());
    const torch::Tensor& g = gradients[0];
    return {g, g.sum(at::IntArrayRef{0}, /*keepdim=*/false, ComputeType(g)).to(dtype),
            torch::Tensor()};
  }
};

}  // namespace

torch::Tensor VectorEdit(torch::Tensor h, const torch::Tensor& scale, const torch::Tensor& bias,
                         bool in_place) {
  if (!scale.defined()) return ShiftFunction::apply(h, bias, in_place);
  return ScaleFunction::apply(h, scale,
                              bias.defined() ? std::optional<torch::Tensor>(bias) : std::nullopt);
}

}  // namespace graft::adapters
