#include "models/layers/activation.h"

#include <ATen/ATen.h>

#include "base/status.h"
#include "models/layers/rebuilt_state.h"

namespace graft::models {
namespace {

const char* Approximation(ActivationKind kind) {
  return kind == ActivationKind::kGeluTanh ? "tanh" : "none";
}

class ActivationState : public RebuiltState {
 public:
  ActivationState(torch::Tensor x, ActivationKind kind) : x_(std::move(x)), kind_(kind) {}

  torch::Tensor Compute() override {
    return kind_ == ActivationKind::kRelu ? at::relu(x_) : at::gelu(x_, Approximation(kind_));
  }
  torch::Tensor Backward(const torch::Tensor& dy) {
    return kind_ == ActivationKind::kRelu ? at::threshold_backward(dy, x_, 0)
                                          : at::gelu_backward(dy, x_, Approximation(kind_));
  }

 private:
  torch::Tensor x_;
  ActivationKind kind_;
};

}  // namespace

ActivationKind ActivationOf(const std::string& name) {
  if (name == "gelu") return ActivationKind::kGelu;
  if (name == "relu") return ActivationKind::kRelu;
  GRAFT_CHECK(name == "gelu_new" || name == "gelu_pytorch_tanh", "no activation " + name);
  return ActivationKind::kGeluTanh;
}

SiteInput Activation(const torch::Tensor& x, ActivationKind kind) {
  return ApplyRebuilt(x, std::make_shared<ActivationState>(x.detach(), kind));
}

}  // namespace graft::models
