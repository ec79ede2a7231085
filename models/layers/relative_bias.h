// T5's relative position bias (Raffel et al. 2020, arXiv 1910.10683, section 2.1): one learned number
// per head and bucket of distances, added to the attention scores.
#pragma once

#include <cstdint>

#include <torch/types.h>

namespace graft::models {

struct RelativeBuckets {
  int64_t buckets = 32;
  int64_t max_distance = 128;  // distances from here on share the last bucket
  bool both_directions = true;  // the encoder's; false: keys behind the query share bucket 0
};

// (2 reach + 1) int64: the bucket of each distance key - query = -reach .. reach.
torch::Tensor BucketsOfDistances(int64_t reach, const RelativeBuckets& rule);

// table (buckets, heads) -> (heads, 2 reach + 1) float32, as BiasedAttention takes it.
// Differentiable in the table.
torch::Tensor RelativeBias(const torch::Tensor& table, int64_t reach, const RelativeBuckets& rule);

}  // namespace graft::models
