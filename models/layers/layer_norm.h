// LayerNorm that keeps its input (which the residual stream keeps anyway), one mean and one 1/std
// per row; the normed output is rebuilt in the backward pass where an adapter needs it.
#pragma once

#include <torch/types.h>

#include "models/site.h"

namespace graft::models {

// y = w (.) (x - mean) / sqrt(var + eps) + b, statistics in float32. x (N, D); weight, bias (D)
// float32. Differentiable in x.
SiteInput LayerNorm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                    double eps);

}  // namespace graft::models
