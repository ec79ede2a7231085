#include "adapters/lora_function.h"

#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "adapters/low_rank.h"

namespace graft::adapters {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What the backward pass needs beside tensors.
struct LoraCall : torch::CustomClassHolder {
  LoraCall(LoraEditOptions call_options, std::shared_ptr<models::Rebuilder> input_rebuilder)
      : options(std::move(call_options)), rebuilder(std::move(input_rebuilder)) {}
  LoraEditOptions options;
  std::shared_ptr<models::Rebuilder> rebuilder;  // null: the input itself was saved
};

// A copy only where dropout writes into it.
torch::Tensor ForDropout(const torch::Tensor& x, const LoraEditOptions& options) {
  return options.dropout ? x.detach().clone(at::MemoryFormat::Contiguous) : x;
}

// The columns of t (r, N) times their rows' gates.
torch::Tensor Gated(const torch::Tensor& t, const torch::Tensor& gate) {
  return gate.defined() ? t * gate.to(t.scalar_type()) : t;
}

// t = D(x) A^T, rank-major and before the gate; adds the edit to y.
torch::Tensor Forward(const torch::Tensor& x, const torch::Tensor& y, const torch::Tensor& a,
                      const torch::Tensor& b, const LoraEditOptions& options) {
  const torch::Tensor dropped = ForDropout(x, options);
  if (options.dropout) options.dropout->ApplyInPlace({dropped});
  torch::Tensor t = ProjectDown(a, dropped.to(options.compute_dtype));
  AddProjectUp(y, Gated(t, options.gate), b, options.scale);
  return t;
}

class LoraFunction : public torch::autograd::Function<LoraFunction> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& y, const torch::Tensor& x,
                               const torch::Tensor& a, const torch::Tensor& b,
                               const std::optional<torch::Tensor>& /*options.gate*/,
                               const c10::intrusive_ptr<LoraCall>& call) {
    const torch::Tensor t = Forward(x, y, a, b, call->options);
    variable_list saved = {t, a, b};
    if (call->rebuilder == nullptr) saved.push_back(x);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->mark_dirty({y});
    return y;
  }

  // With u = s dy B and the gate g: dB = s dy^T (g t), dg = <t, u>, dA = (g u)^T D(x), dx =
  // D(g u A).
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto holder = ctx->saved_data.at("call").toCapsule();
    auto& call = static_cast<LoraCall&>(*holder);
    const variable_list saved = ctx->get_saved_variables();
    const torch::Tensor &t = saved[0], &a = saved[1], &b = saved[2];
    const torch::Tensor& gate = call.options.gate;
    const torch::Tensor& dy = gradients[0];
    const bool x_needs_grad = ctx->needs_input_grad(kX);

    torch::Tensor db;
    if (ctx->needs_input_grad(kB)) {
      db = SumOverRows(Gated(t, gate), dy).mul_(call.options.scale).t().to(b.scalar_type());
    }
    torch::Tensor dx, da, dgate;
    const bool gate_needs_grad = gate.defined() && ctx->needs_input_grad(kGate);
    if (x_needs_grad || gate_needs_grad || ctx->needs_input_grad(kA)) {
      torch::Tensor dt =
          ProjectDown(b.t(), dy.to(call.options.compute_dtype)).mul_(call.options.scale);
      if (gate_needs_grad) dgate = (t.to(gate.scalar_type()) * dt).sum(0);
      dt = Gated(dt, gate);
      if (x_needs_grad) dx = at::mm(dt.t(), a.to(dt.scalar_type())).to(dy.scalar_type());
      if (ctx->needs_input_grad(kA)) {
        const torch::Tensor x = call.rebuilder ? call.rebuilder->Get() : saved[3];
        da = InputGradients(dt, x, &dx, call.options).to(a.scalar_type());
      } else if (call.options.dropout && x_needs_grad) {
        call.options.dropout->ApplyInPlace({dx});
      }
    }
    return {dy, dx, da, db, dgate, torch::Tensor()};
  }

 private:
  enum Input : size_t { kY, kX, kA, kB, kGate };

  // dA, and D applied to *dx where it is defined: one drawing of the mask serves both.
  static torch::Tensor InputGradients(const torch::Tensor& dt, const torch::Tensor& x,
                                      torch::Tensor* dx, const LoraEditOptions& options) {
    const torch::Tensor dropped = ForDropout(x, options);
    if (options.dropout) {
      std::vector<torch::Tensor> masked = {dropped};
      if (dx->defined()) masked.push_back(*dx);
      options.dropout->ApplyInPlace(masked);
    }
    return SumOverRows(dt, dropped);
  }
};

}  // namespace

torch::Tensor LoraEdit(const models::SiteInput& x, torch::Tensor y, const torch::Tensor& a,
                       const torch::Tensor& b, LoraEditOptions options) {
  const bool differentiable =
      at::GradMode::is_enabled() &&
      (a.requires_grad() || b.requires_grad() || x.value.requires_grad() || y.requires_grad() ||
       (options.gate.defined() && options.gate.requires_grad()));
  if (!differentiable) {
    Forward(x.value, y, a, b, options);
    return y;
  }
  // An input of the function only where there is one, so that it gets a gradient.
  const auto gate = options.gate.defined() ? std::optional(options.gate) : std::nullopt;
  return LoraFunction::apply(y, x.value, a, b, gate,
                             c10::make_intrusive<LoraCall>(std::move(options), x.rebuilder));
}

}  // namespace graft::adapters
