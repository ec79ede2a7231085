// Attention on devices other than the host, by LibTorch's kernels. Used by attention.cc.
//
// Shapes as in attention_kernel.h.
#pragma once

#include <array>
#include <vector>

#include <torch/types.h>

#include "models/layers/attention.h"
#include "models/layers/attention_kernel.h"

namespace graft::models::device {

// As models::AttentionForward and AttentionBackward. FlashAttention over all segments in one call
// where the GPU's kernel takes the tensors (16-bit floats, no bias); else LibTorch's attention
// segment by segment, whose backward runs it again.
AttentionResult AttentionForward(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v, const std::vector<Segment>& segments,
                                 const std::vector<Segment>& key_segments,
                                 const AttentionShape& shape);
std::array<torch::Tensor, 3> AttentionBackward(const torch::Tensor& dout, const torch::Tensor& q,
                                               const torch::Tensor& k, const torch::Tensor& v,
                                               const AttentionResult& forward,
                                               const std::vector<Segment>& segments,
                                               const std::vector<Segment>& key_segments,
                                               const AttentionShape& shape);

// One sample: q (1, H, queries, d) of the last `queries` of `keys` positions, k and v (1, G, keys,
// d) -> (1, H, queries, d). Differentiable.
torch::Tensor AttendOne(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const AttentionShape& shape);

}  // namespace graft::models::device
