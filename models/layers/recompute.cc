#include "models/layers/recompute.h"

#include <torch/csrc/autograd/autograd.h>

#include "models/layers/saved_state.h"

namespace graft::models {
namespace {

using Body = std::function<torch::Tensor(const torch::Tensor&)>;

class RecomputeFunction : public torch::autograd::Function<RecomputeFunction> {
 public:
  // `anchor` requires grad, so that the node exists even when only parameters inside the body do.
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& h,
                               const torch::Tensor& /*anchor*/, const std::shared_ptr<Body>& body) {
    context->save_for_backward({h});
    context->saved_data["wants_input_gradient"] = h.requires_grad();
    SaveState(context, body);
    at::NoGradGuard no_grad;
    return (*body)(h);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    torch::AutoGradMode with_graph(true);
    const torch::Tensor h = context->get_saved_variables()[0].detach().requires_grad_(
        context->saved_data["wants_input_gradient"].toBool());
    const torch::Tensor y = SavedState<Body>(context)(h);
    // Hooks without trained parameters on a frozen input leave nothing to differentiate.
    if (y.requires_grad()) torch::autograd::backward({y}, {dy[0]});
    return {h.grad(), torch::Tensor(), torch::Tensor()};
  }
};

}  // namespace

torch::Tensor Recomputed(const torch::Tensor& h, Body body) {
  if (!torch::GradMode::is_enabled()) return body(h);
  const torch::Tensor anchor = torch::zeros({1}).requires_grad_(true);
  return RecomputeFunction::apply(h, anchor, std::make_shared<Body>(std::move(body)));
}

}  // namespace graft::models
