// Attention of single rows to cached keys and values: a decoding step of many sequences at once, on
// CPUs. What a row becomes depends on its own sequence alone, bit for bit, whatever rows stand
// beside it. Used by the key-value cache (attention.h); no gradient.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "models/layers/attention.h"

namespace graft::models {

// One row and what it sees: `length` rows of keys and values, its own among them, as the last.
struct DecodingRow {
  int64_t row = 0;
  const torch::Tensor* keys = nullptr;    // (at least length, kv_heads * head_dim), contiguous
  const torch::Tensor* values = nullptr;  // the same
  int64_t length = 0;
};

// q (N, heads * head_dim) contiguous, float32 or bfloat16; writes the named rows of `out`, which is
// like q. Computed in float32.
void DecodeAttention(const torch::Tensor& q, const std::vector<DecodingRow>& rows,
                     const AttentionShape& shape, const torch::Tensor& out);

}  // namespace graft::models
