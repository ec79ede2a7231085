// SwiGLU that keeps gate and up; the product silu(gate) * up is rebuilt in the backward pass where
// an adapter needs it.
#pragma once

#include <torch/types.h>

#include "models/site.h"

namespace graft::models {

// y = silu(gate) (.) up, both (N, F). Differentiable in both.
SiteInput SwiGlu(const torch::Tensor& gate, const torch::Tensor& up);

}  // namespace graft::models
