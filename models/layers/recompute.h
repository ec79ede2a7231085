// model.recompute: layer. Keeps only a layer's input; the layer runs again in the backward pass.
// Dropout draws the same masks, because every draw is a function of counters.
#pragma once

#include <functional>

#include <torch/types.h>

namespace graft::models {

// h (N, D) -> body(h, source). `source` is what else the layer reads, or undefined. Gradients of
// parameters inside `body` are accumulated into their .grad during the backward pass.
using RecomputeBody =
    std::function<torch::Tensor(const torch::Tensor& h, const torch::Tensor& source)>;
torch::Tensor Recomputed(const torch::Tensor& h, const torch::Tensor& source, RecomputeBody body);

}  // namespace graft::models
