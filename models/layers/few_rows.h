// x W^T for few rows of x, as in a decoding step: the work is reading W once, and one call does all
// of it. What a row gets depends on that row alone, bit for bit, for every number of rows and
// threads. Used by frozen_linear.cc; no gradient. CPU, float32.
#pragma once

#include <cstdint>

#include <torch/types.h>

namespace graft::models {

inline constexpr int64_t kFewRows = 64;  // up to so many it is faster than a library's product

// x (N, in), weight (out, in): float32, contiguous -> (N, out).
torch::Tensor MultiplyFewRows(const torch::Tensor& x, const torch::Tensor& weight);

}  // namespace graft::models
