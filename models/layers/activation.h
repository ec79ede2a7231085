// The element-wise activation of feed-forwards without a gate. Keeps its input; the activated value
// is rebuilt in the backward pass where an adapter needs it.
#pragma once

#include <string>

#include <torch/types.h>

#include "models/site.h"

namespace graft::models {

enum class ActivationKind {
  kGelu,      // x Phi(x), by the error function
  kGeluTanh,  // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kRelu,
};

// Of the names that model configs use: gelu, gelu_new, gelu_pytorch_tanh, relu (the config reader
// has refused others).
ActivationKind ActivationOf(const std::string& name);

// x (N, F) -> (N, F), differentiable in x.
SiteInput Activation(const torch::Tensor& x, ActivationKind kind);

}  // namespace graft::models
