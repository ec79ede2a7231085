// Attention over the segments of a micro-batch: of each to itself, causal or in both directions, or
// of a decoder's to the encoder's rows of the same sample. Never crosses samples; keeps q, k, v,
// the output and the log-sum-exp.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include <torch/types.h>

#include "models/layers/kv_places.h"
#include "models/micro_batch.h"
#include "models/sequence_fork.h"

namespace graft::models {

// What is added to the scores by head and distance = key - query (T5, arXiv 1910.10683).
struct RelativeBias {
  int64_t reach = 0;          // distances beyond it have the value of +-reach
  std::vector<float> values;  // (heads, 2 reach + 1); empty where only `table` is asked for
  torch::Tensor table;        // the same on a device other than the host; undefined on the host
  // Of a head: [distance], -reach to reach.
  const float* Of(int64_t head) const { return values.data() + head * (2 * reach + 1) + reach; }
};

struct AttentionShape {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t sliding_window = 0;  // 0 = full; else a key at distance >= window is not seen
  bool causal = true;          // false: every key is seen, and sliding_window must be 0
  float scale = 0;             // of the scores; 0 = 1 / sqrt(head_dim)
  std::shared_ptr<const RelativeBias> bias = nullptr;  // null = none
};
// The factor of the scores.
float ScoreScale(const AttentionShape& shape);

// q (N, heads * head_dim), k and v (N, kv_heads * head_dim), after RoPE -> (N, heads * head_dim).
// Differentiable. Each group of heads / kv_heads query heads shares one key-value head.
torch::Tensor Attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::vector<Segment>& segments, const AttentionShape& shape);
// The same with k and v of other rows: segment i of the queries sees all of key segment i, which
// has at least one row. Not causal.
torch::Tensor CrossAttention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const std::vector<Segment>& segments,
                             const std::vector<Segment>& key_segments, const AttentionShape& shape);

struct DecodingInputs;  // models/site.h

// Keys and values of one layer for running sequences, by sequence id.
class LayerKvCache {
 public:
  LayerKvCache() = default;  // it grows
  // Fixed room: `rows` rows at each of the places, which all layers of a cache share.
  LayerKvCache(std::shared_ptr<KvPlaces> places, int64_t rows)
      : places_(std::move(places)), rows_(rows) {}
  // Appends the segments' rows and attends to everything cached. No gradient. Fixed room: the
  // segments begin their sequences, or `decoding` has one row of each.
  torch::Tensor Attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                       const std::vector<Segment>& segments, const AttentionShape& shape,
                       const DecodingInputs* decoding = nullptr);
  // The same for a decoder's look at the encoder's rows: segment i of the queries sees what key
  // segment i brought when it had rows, in its sequence's first step; later it has none. Forks
  // share these keys and values.
  torch::Tensor AttendSource(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const std::vector<Segment>& segments,
                             const std::vector<Segment>& key_segments, const AttentionShape& shape);
  void Drop(int64_t sequence) {
    sequences_.erase(sequence);
    sources_.erase(sequence);
  }
  void Fork(const std::vector<SequenceFork>& forks);
  int64_t Length(int64_t sequence) const;
  // Fixed room: what KvPlaces::Fork said.
  void CopyPlaces(const std::vector<KvPlaces::Copy>& copies);

 private:
  struct Entry {
    torch::Tensor keys, values;  // (capacity, kv_heads * head_dim)
    int64_t length = 0;
    Entry Copy() const;
  };
  struct Source {
    torch::Tensor keys, values;  // (encoder rows, heads * head_dim), never changed
  };
  torch::Tensor AttendAtPlaces(const torch::Tensor& q, const torch::Tensor& k,
                               const torch::Tensor& v, const std::vector<Segment>& segments,
                               const AttentionShape& shape, const DecodingInputs* decoding);
  static void Append(Entry& entry, const torch::Tensor& k, const torch::Tensor& v,
                     const Segment& segment);
  std::map<int64_t, Entry> sequences_;
  std::map<int64_t, Source> sources_;
  std::shared_ptr<KvPlaces> places_;  // null: it grows, and the rest is not used
  int64_t rows_ = 0;
  torch::Tensor keys_, values_;  // (places, rows, kv_heads * head_dim), from the first pass on
};

}  // namespace graft::models
