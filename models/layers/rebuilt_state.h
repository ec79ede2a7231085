// What the norms and activations share: a state that makes their output in the forward pass, makes
// it again in the backward pass when an adapter asks, and lets it go when the layer's own backward
// runs. Used inside layers/ only.
#pragma once

#include <memory>

#include <ATen/ATen.h>

#include "models/layers/saved_state.h"
#include "models/site.h"

namespace graft::models {

class RebuiltState : public Rebuilder {
 public:
  // The output, from what the state keeps; the same bytes at every call.
  virtual torch::Tensor Compute() = 0;
  torch::Tensor Get() final {
    if (!rebuilt_.defined()) {
      at::NoGradGuard no_grad;
      rebuilt_ = Compute();
    }
    return rebuilt_;
  }
  void Release() final { rebuilt_ = torch::Tensor(); }

 private:
  torch::Tensor rebuilt_;
};

// The autograd node of a layer with one differentiable input, around a RebuiltState that also has
// Backward(dy) -> dx.
template <typename State>
class RebuiltFunction : public torch::autograd::Function<RebuiltFunction<State>> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context,
                               const torch::Tensor& /*x*/, const std::shared_ptr<State>& state) {
    SaveState(context, state);
    return state->Compute();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    State& state = SavedState<State>(context);
    state.Release();
    return {state.Backward(dy[0].contiguous()), torch::Tensor()};
  }
};

template <typename State>
SiteInput ApplyRebuilt(const torch::Tensor& x, std::shared_ptr<State> state) {
  torch::Tensor y = RebuiltFunction<State>::apply(x, state);
  return {y, state};
}

}  // namespace graft::models
