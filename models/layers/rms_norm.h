// RMSNorm that keeps its input (which the residual stream keeps anyway) and one float per row; the
// normed output is rebuilt in the backward pass where an adapter needs it.
#pragma once

#include <torch/types.h>

#include "models/site.h"

namespace graft::models {

// y = w (.) (x / sqrt(mean(x^2) + eps)), statistics in float32. x (N, D), weight (D).
// Differentiable in x.
SiteInput RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

}  // namespace graft::models
