#include "models/layers/norm.h"

#include <ATen/ATen.h>

#include "models/layers/layer_norm.h"
#include "models/layers/rms_norm.h"

namespace graft::models {
namespace {

// With LibTorch's own operators, in the reference's order of rounding.
torch::Tensor TrainedNorm(const torch::Tensor& x, const Norm& norm) {
  const torch::Dtype dtype = x.scalar_type();
  if (norm.bias.defined()) {
    return at::layer_norm(x, {x.size(1)}, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps);
  }
  const torch::Tensor wide = x.to(torch::kFloat32);
  const torch::Tensor mean = wide.pow(2).mean(1, /*keepdim=*/true);
  const torch::Tensor y = norm.weight.to(dtype) * (wide * at::rsqrt(mean + norm.eps)).to(dtype);
  return norm.gain == 1 ? y : y * norm.gain;
}

}  // namespace

SiteInput Norm::Forward(const torch::Tensor& x) const {
  if (weight.requires_grad()) return {TrainedNorm(x, *this), nullptr};
  return bias.defined() ? LayerNorm(x, weight, bias, eps) : RmsNorm(x, weight, eps);
}

}  // namespace graft::models
