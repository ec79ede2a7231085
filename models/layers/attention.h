// Self-attention over the segments of a micro-batch, causal or in both directions. Never crosses
// segments; keeps q, k, v, the output and the log-sum-exp.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include <torch/types.h>

#include "models/micro_batch.h"
#include "models/sequence_fork.h"

namespace graft::models {

struct AttentionShape {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t sliding_window = 0;  // 0 = full; else a key at distance >= window is not seen
  bool causal = true;          // false: every key is seen, and sliding_window must be 0
};

// q (N, heads * head_dim), k and v (N, kv_heads * head_dim), after RoPE -> (N, heads * head_dim).
// Differentiable. Each group of heads / kv_heads query heads shares one key-value head.
torch::Tensor Attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::vector<Segment>& segments, const AttentionShape& shape);

// Keys and values of one layer for running sequences, by sequence id.
class LayerKvCache {
 public:
  // Appends the segments' rows and attends to everything cached. No gradient.
  torch::Tensor Attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                       const std::vector<Segment>& segments, const AttentionShape& shape);
  void Drop(int64_t sequence) { sequences_.erase(sequence); }
  void Fork(const std::vector<SequenceFork>& forks);
  int64_t Length(int64_t sequence) const;

 private:
  struct Entry {
    torch::Tensor keys, values;  // (capacity, kv_heads * head_dim)
    int64_t length = 0;
    Entry Copy() const;
  };
  void Append(Entry& entry, const torch::Tensor& k, const torch::Tensor& v);
  std::map<int64_t, Entry> sequences_;
};

}  // namespace graft::models
