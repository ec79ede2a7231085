// h' = s (.) h + beta with one vector per site, as an autograd function. Used by red; methods that
// only scale, or scale each sample by vectors of its own, use row_scale.h.
//
// Shapes: N rows, D width.
#pragma once

#include <torch/types.h>

namespace graft::adapters {

// h (N, D) in the model's dtype; scale and bias (D), either may be undefined (then 1, 0). Computed
// in float32 at least and rounded once to h's dtype; gradients of the vectors are float32 sums over
// rows. Keeps h for the backward pass only when there is a scale.
// `in_place`: h may be overwritten, which is done where h is not kept.
torch::Tensor VectorEdit(torch::Tensor h, const torch::Tensor& scale, const torch::Tensor& bias,
                         bool in_place);

}  // namespace graft::adapters
