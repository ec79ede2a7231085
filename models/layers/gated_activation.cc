#include "models/layers/gated_activation.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/layers/rebuilt_state.h"

namespace graft::models {
namespace {

class GatedState : public RebuiltState {
 public:
  GatedState(torch::Tensor gate, torch::Tensor up, ActivationKind kind)
      : gate_(std::move(gate)), up_(std::move(up)), kind_(kind) {}

  torch::Tensor Compute() override { return ActivationValue(gate_, kind_) * up_; }
  torch::autograd::variable_list Backward(const torch::Tensor& dy) {
    Release();
    return {ActivationGradient(dy * up_, gate_, kind_), dy * ActivationValue(gate_, kind_),
            torch::Tensor()};
  }

 private:
  torch::Tensor gate_, up_;
  ActivationKind kind_;
};

class GatedFunction : public torch::autograd::Function<GatedFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context,
                               const torch::Tensor& /*gate*/, const torch::Tensor& /*up*/,
                               const std::shared_ptr<GatedState>& state) {
    SaveState(context, state);
    return state->Compute();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    return SavedState<GatedState>(context).Backward(dy[0].contiguous());
  }
};

}  // namespace

SiteInput GatedActivation(const torch::Tensor& gate, const torch::Tensor& up, ActivationKind kind) {
  auto state = std::make_shared<GatedState>(gate.detach(), up.detach(), kind);
  torch::Tensor y = GatedFunction::apply(gate, up, state);
  return {y, state};
}

}  // namespace graft::models
