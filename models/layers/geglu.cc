#include "models/layers/geglu.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/layers/rebuilt_state.h"

namespace graft::models {
namespace {

constexpr char kForm[] = "tanh";

class GeGluState : public RebuiltState {
 public:
  GeGluState(torch::Tensor gate, torch::Tensor up) : gate_(std::move(gate)), up_(std::move(up)) {}

  torch::Tensor Compute() override { return at::gelu(gate_, kForm).mul_(up_); }
  torch::autograd::variable_list Backward(const torch::Tensor& dy) {
    Release();
    return {at::gelu_backward(dy * up_, gate_, kForm), at::gelu(gate_, kForm).mul_(dy),
            torch::Tensor()};
  }

 private:
  torch::Tensor gate_, up_;
};

class GeGluFunction : public torch::autograd::Function<GeGluFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context,
                               const torch::Tensor& /*gate*/, const torch::Tensor& /*up*/,
                               const std::shared_ptr<GeGluState>& state) {
    SaveState(context, state);
    return state->Compute();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    return SavedState<GeGluState>(context).Backward(dy[0].contiguous());
  }
};

}  // namespace

SiteInput GeGlu(const torch::Tensor& gate, const torch::Tensor& up) {
  auto state = std::make_shared<GeGluState>(gate.detach(), up.detach());
  torch::Tensor y = GeGluFunction::apply(gate, up, state);
  return {y, state};
}

}  // namespace graft::models
