// y = l (.) x where each span of rows has a vector of its own, as an autograd function: one span
// for all rows (ia3), one for each sample (para). One pass over the rows, forward and backward.
//
// Shapes: N rows, D width, S spans.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "models/site.h"

namespace graft::adapters {

// x.value (N, D) in the model's dtype; scales (S, D) float32 (float64 for float64), differentiable;
// span s ends before row ends[s], where the next one begins; the last one ends at N. Computed in
// float32 at least and rounded once. The gradient of a vector is a float32 sum over its rows, in
// row order whatever the number of threads is. For the backward pass it keeps x only where x has no
// rebuilder. The result has none.
torch::Tensor ScaleRows(const models::SiteInput& x, const torch::Tensor& scales,
                        std::vector<int64_t> ends);

}  // namespace graft::adapters
