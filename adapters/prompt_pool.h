// One vector per sample from its prompt rows alone; the answer never enters (methods.md 1.3, 6,
// 10). Used by para, idpg and lopa.
//
// Shapes: N rows, D width, S segments.
#pragma once

#include <string>
#include <vector>

#include <torch/types.h>

#include "models/site.h"

namespace graft::adapters {

enum class Pooling { kMean, kLast, kMax, kAttention };

// x.value (N, D) -> (S, D) float32 (float64 for float64), differentiable in x and `weight`; a
// segment without a prompt gives 0. kAttention: sum_t softmax_t(<weight, x_t> / sqrt(D)) x_t with
// weight (D); the others take no weight (undefined). Keeps x for the backward pass only for
// kAttention, and only where x has no rebuilder.
torch::Tensor PoolPrompts(const models::SiteInput& x, const std::vector<models::Segment>& segments,
                          Pooling pooling, const torch::Tensor& weight = torch::Tensor());

}  // namespace graft::adapters
