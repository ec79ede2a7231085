// Final norm, LM head and cross-entropy on supervised positions only, in chunks: the full logits
// never exist (performance.md 2.2).
#pragma once

#include <vector>

#include <torch/types.h>

#include "models/layers/frozen_linear.h"
#include "models/layers/norm.h"

namespace graft::models {

struct LossHead {
  Norm norm;
  FrozenLinear projection;  // (V, D), no bias
};

// Supervised rows of h and the tokens that they predict, (P) int64 each, on h's device; undefined
// where there are none.
struct LossTargets {
  torch::Tensor rows, ids;
};

// sum_i -log softmax(norm(h[rows_i]) W^T)[ids_i], nats: a float64 scalar on h's device,
// differentiable in h (N, D) and in what of the head is trained. The gradient is formed in the
// forward pass chunk by chunk when h requires grad. No rows: zero that still depends on h.
torch::Tensor HeadLossSum(const torch::Tensor& h, const LossTargets& targets, const LossHead& head);
// The same for each target, without gradient.
struct TargetResults {
  torch::Tensor losses;  // (targets) float32, nats, on h's device
  torch::Tensor right;   // (targets) bool, likewise: no token has a larger logit
};
TargetResults HeadTargets(const torch::Tensor& h, const LossTargets& targets, const LossHead& head);
// (rows, V) float32 logits, without gradient.
torch::Tensor HeadLogits(const torch::Tensor& h, const std::vector<int64_t>& rows,
                         const LossHead& head);

}  // namespace graft::models
