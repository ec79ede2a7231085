// act(gate) (.) up for other activations than silu (swiglu.h). Keeps gate and up; the product is
// rebuilt in the backward pass where an adapter needs it.
#pragma once

#include <torch/types.h>

#include "models/layers/activation.h"
#include "models/site.h"

namespace graft::models {

// Both (N, F). Differentiable in both.
SiteInput GatedActivation(const torch::Tensor& gate, const torch::Tensor& up, ActivationKind kind);

}  // namespace graft::models
