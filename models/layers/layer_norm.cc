#include "models/layers/layer_norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/layers/saved_state.h"

namespace graft::models {
namespace {

// What forward, rebuild and backward share: x and two statistics a row are what autograd keeps.
class LayerNormState : public Rebuilder {
 public:
  LayerNormState(torch::Tensor x, torch::Tensor weight, torch::Tensor bias, double eps)
      : x_(std::move(x)), weight_(std::move(weight)), bias_(std::move(bias)), eps_(eps) {}

  torch::Tensor Compute() {
    auto [y, mean, rstd] = at::native_layer_norm(x_, {x_.size(1)}, weight_, bias_, eps_);
    mean_ = mean;
    rstd_ = rstd;
    return y;
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
    return std::get<0>(at::native_layer_norm_backward(dy.contiguous(), x_, {x_.size(1)}, mean_,
                                                      rstd_, weight_, bias_, {true, false, false}));
  }

 private:
  torch::Tensor x_, weight_, bias_, mean_, rstd_, rebuilt_;
  double eps_;
};

class LayerNormFunction : public torch::autograd::Function<LayerNormFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context,
                               const torch::Tensor& /*x*/,
                               const std::shared_ptr<LayerNormState>& state) {
    SaveState(context, state);
    return state->Compute();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    return {SavedState<LayerNormState>(context).Backward(dy[0]), torch::Tensor()};
  }
};

}  // namespace

SiteInput LayerNorm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                    double eps) {
  auto state = std::make_shared<LayerNormState>(x.detach(), weight, bias, eps);
  torch::Tensor y = LayerNormFunction::apply(x, state);
  return {y, state};
}

}  // namespace graft::models
