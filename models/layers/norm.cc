#include "models/layers/norm.h"

#include "models/layers/layer_norm.h"
#include "models/layers/rms_norm.h"

namespace graft::models {

SiteInput Norm::Forward(const torch::Tensor& x) const {
  return bias.defined() ? LayerNorm(x, weight, bias, eps) : RmsNorm(x, weight, eps);
}

}  // namespace graft::models
