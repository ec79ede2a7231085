// T5's relative position bias: a table (buckets, heads) that a whole stack shares, read by the
// distance of key and query (arXiv 1910.10683, section 2.1; buckets as in HF transformers). Used by
// architectures/t5.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <torch/types.h>

#include "models/layers/attention.h"

namespace graft::models {

// Bucket of each distance key - query (int64). An encoder (`bidirectional`) has half of the buckets
// for keys behind the query; a decoder gives all later keys, which it never sees, bucket 0. Half of
// the buckets of a direction stand for one distance each, the others grow by a factor up to
// max_distance.
torch::Tensor RelativeBuckets(const torch::Tensor& distance, bool bidirectional, int64_t buckets,
                              int64_t max_distance);

// table (buckets, heads), any float dtype -> what attention adds by head and distance.
std::shared_ptr<const RelativeBias> MakeRelativeBias(const torch::Tensor& table, bool bidirectional,
                                                     int64_t max_distance);

// Attention of each segment to itself with a bias whose table (buckets, heads) float32 is trained:
// differentiable in it too. Not scaled; causal unless bidirectional. Scores of a whole segment lie
// in memory: the frozen form is Attention(). q, k, v (N, heads * head_dim).
struct TrainedBiasShape {
  int64_t num_heads = 0;
  bool bidirectional = false;
  int64_t max_distance = 0;
};
torch::Tensor AttentionWithTrainedBias(const torch::Tensor& q, const torch::Tensor& k,
                                       const torch::Tensor& v, const std::vector<Segment>& segments,
                                       const TrainedBiasShape& shape, const torch::Tensor& table);

}  // namespace graft::models
