#include "models/layers/activation.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/status.h"
#include "models/layers/saved_state.h"

namespace graft::models {
namespace {

const char* Approximation(ActivationKind kind) {
  return kind == ActivationKind::kGeluTanh ? "tanh" : "none";
}

class ActivationState : public Rebuilder {
 public:
  ActivationState(torch::Tensor x, ActivationKind kind) : x_(std::move(x)), kind_(kind) {}

  torch::Tensor Compute() const {
    return kind_ == ActivationKind::kRelu ? at::relu(x_) : at::gelu(x_, Approximation(kind_));
  }
  torch::Tensor Get() override {
    if (!rebuilt_.defined()) {
      at::NoGradGuard no_grad;
      rebuilt_ = Compute();
    }
    return rebuilt_;
  }
  void Release() override { rebuilt_ = torch::Tensor(); }
  torch::Tensor Backward(const torch::Tensor& dy) {
    Release();
    return kind_ == ActivationKind::kRelu ? at::threshold_backward(dy, x_, 0)
                                          : at::gelu_backward(dy, x_, Approximation(kind_));
  }

 private:
  torch::Tensor x_, rebuilt_;
  ActivationKind kind_;
};

class ActivationFunction : public torch::autograd::Function<ActivationFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context,
                               const torch::Tensor& /*x*/,
                               const std::shared_ptr<ActivationState>& state) {
    SaveState(context, state);
    return state->Compute();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    return {SavedState<ActivationState>(context).Backward(dy[0].contiguous()), torch::Tensor()};
  }
};

}  // namespace

ActivationKind ActivationOf(const std::string& name) {
  if (name == "gelu") return ActivationKind::kGelu;
  if (name == "relu") return ActivationKind::kRelu;
  GRAFT_CHECK(name == "gelu_new" || name == "gelu_pytorch_tanh", "no activation " + name);
  return ActivationKind::kGeluTanh;
}

SiteInput Activation(const torch::Tensor& x, ActivationKind kind) {
  auto state = std::make_shared<ActivationState>(x.detach(), kind);
  torch::Tensor y = ActivationFunction::apply(x, state);
  return {y, state};
}

}  // namespace graft::models
