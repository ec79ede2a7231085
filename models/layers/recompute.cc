#include "models/layers/recompute.h"

#include <memory>
#include <optional>

#include <torch/csrc/autograd/autograd.h>

#include "models/layers/saved_state.h"

namespace graft::models {
namespace {

class RecomputeFunction : public torch::autograd::Function<RecomputeFunction> {
 public:
  // `anchor` requires grad, so that the node exists even when only parameters inside the body do.
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& h,
                               const std::optional<torch::Tensor>& source,
                               const torch::Tensor& /*anchor*/,
                               const std::shared_ptr<RecomputeBody>& body) {
    const torch::Tensor other = source.value_or(torch::Tensor());
    context->save_for_backward({h, other});
    context->saved_data["wants_input_gradient"] = h.requires_grad();
    context->saved_data["wants_source_gradient"] = other.defined() && other.requires_grad();
    SaveState(context, body);
    at::NoGradGuard no_grad;
    return (*body)(h, other);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    torch::AutoGradMode with_graph(true);
    const auto saved = context->get_saved_variables();
    const torch::Tensor h =
        saved[0].detach().requires_grad_(context->saved_data["wants_input_gradient"].toBool());
    torch::Tensor source;
    if (saved[1].defined()) {
      source =
          saved[1].detach().requires_grad_(context->saved_data["wants_source_gradient"].toBool());
    }
    const torch::Tensor y = SavedState<RecomputeBody>(context)(h, source);
    // Hooks without trained parameters on a frozen input leave nothing to differentiate.
    if (y.requires_grad()) torch::autograd::backward({y}, {dy[0]});
    return {h.grad(), source.defined() ? source.grad() : torch::Tensor(), torch::Tensor(),
            torch::Tensor()};
  }
};

}  // namespace

torch::Tensor Recomputed(const torch::Tensor& h, const torch::Tensor& source, RecomputeBody body) {
  if (!torch::GradMode::is_enabled()) return body(h, source);
  const torch::Tensor anchor = torch::zeros({1}).requires_grad_(true);
  return RecomputeFunction::apply(
      h, source.defined() ? std::optional<torch::Tensor>(source) : std::nullopt, anchor,
      std::make_shared<RecomputeBody>(std::move(body)));
}

}  // namespace graft::models
