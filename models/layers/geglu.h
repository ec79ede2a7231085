// The gated feed-forward of T5 v1.1: keeps gate and up; the product is rebuilt in the backward pass
// where an adapter needs it.
#pragma once

#include <torch/types.h>

#include "models/site.h"

namespace graft::models {

// y = gelu(gate) (.) up with the tanh form of GELU, both (N, F). Differentiable in both.
SiteInput GeGlu(const torch::Tensor& gate, const torch::Tensor& up);

}  // namespace graft::models
