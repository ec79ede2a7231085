// Attention and its gradient on CPUs, in float32 whatever the dtype of the tensors: blocks of
// scores that fit in the cache, never the whole matrix, and none of the hidden blocks
// (FlashAttention, arXiv 2205.14135, algorithms 1 and 4). LibTorch's own kernel is two to four
// times slower here: it multiplies through a library that knows not every processor. Used by
// attention.cc for training and evaluation; decoding with a cache is not its business.
//
// Shapes: N rows of all segments, M of all key segments (of attention to itself the same), H query
// heads, G key-value heads, d width of a head.
#pragma once

#include <array>
#include <vector>

#include <torch/types.h>

#include "models/layers/attention.h"

namespace graft::models {

struct AttentionResult {
  torch::Tensor out;          // (N, H d), dtype of q
  torch::Tensor log_sum_exp;  // (H, N) float32, of each row's scaled scores
  // Of a device's kernel (device_attention.cc): what else its backward takes. Empty: nothing.
  std::vector<torch::Tensor> kernel_state = {};
};

// q (N, H d), k and v (M, G d): contiguous, float32 or bfloat16. The same bits for every number of
// threads.
AttentionResult AttentionForward(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v, const std::vector<Segment>& segments,
                                 const std::vector<Segment>& key_segments,
                                 const AttentionShape& shape);

// Gradients of q, k, v, in their dtypes, from that of out.
std::array<torch::Tensor, 3> AttentionBackward(const torch::Tensor& dout, const torch::Tensor& q,
                                               const torch::Tensor& k, const torch::Tensor& v,
                                               const AttentionResult& forward,
                                               const std::vector<Segment>& segments,
                                               const std::vector<Segment>& key_segments,
                                               const AttentionShape& shape);

}  // namespace graft::models
