#include "models/layers/layer_norm.h"

#include <ATen/ATen.h>

#include "models/device.h"
#include "models/layers/rebuilt_state.h"

namespace graft::models {
namespace {

// What forward, rebuild and backward share: x and two statistics a row are what autograd keeps.
class LayerNormState : public RebuiltState {
 public:
  LayerNormState(torch::Tensor x, torch::Tensor weight, torch::Tensor bias, double eps)
      : x_(std::move(x)), weight_(std::move(weight)), bias_(std::move(bias)), eps_(eps) {
    if (UsesHostKernels(x_)) return;
    // Only LibTorch's host kernel takes float32 weights for rows of another type.
    weight_ = weight_.to(x_.scalar_type());
    bias_ = bias_.to(x_.scalar_type());
  }

  torch::Tensor Compute() override {
    auto [y, mean, rstd] = at::native_layer_norm(x_, {x_.size(1)}, weight_, bias_, eps_);
    mean_ = mean;
    rstd_ = rstd;
    return y;
  }
  torch::Tensor Backward(const torch::Tensor& dy) {
    return std::get<0>(at::native_layer_norm_backward(dy, x_, {x_.size(1)}, mean_, rstd_, weight_,
                                                      bias_, {true, false, false}));
  }

 private:
  torch::Tensor x_, weight_, bias_, mean_, rstd_;
  double eps_;
};

}  // namespace

SiteInput LayerNorm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                    double eps) {
  return ApplyRebuilt(x, std::make_shared<LayerNormState>(x.detach(), weight, bias, eps));
}

}  // namespace graft::models
