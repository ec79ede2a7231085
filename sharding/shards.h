// The shard files of a checkpoint, as one rank writes and reads them: one safetensors file per unit
// (layer, prompt, head) with param/NAME, exp_avg/NAME, exp_avg_sq/NAME. Used by the checkpointer.
// Knows no ranks: a stage writes the units it owns and reads the names it needs.
#pragma once

#include <string>
#include <vector>

#include <torch/types.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapters/adapter_set.h"
#include "sharding/manifest.h"

namespace graft::sharding {

// This rank's trained state. Moments: (P) float32 in the layout of set->values().
struct TrainedState {
  adapters::AdapterSet* set = nullptr;
  torch::Tensor exp_avg;
  torch::Tensor exp_avg_sq;
};

// "layer-0007.safetensors"; parameters outside the layers: "prompt.safetensors" (layer =
// num_layers), "head.safetensors" (above).
std::string ShardName(int layer, int num_layers);

// Writes the units of `state` below `folder`/shards, durable. Errors: kind io.
absl::StatusOr<std::vector<CheckpointFile>> WriteShards(const std::string& folder, int num_layers,
                                                        const TrainedState& state);

// Flat (P) float32 CPU copies in the layout of an adapter set.
struct FlatState {
  torch::Tensor values, exp_avg, exp_avg_sq;
};
// Reads what `set` needs. Errors: kind input naming file and tensor: absent, other shape or type,
// not finite, a negative second moment.
absl::StatusOr<FlatState> ReadShards(const std::string& folder, int num_layers,
                                     const adapters::AdapterSet& set);

}  // namespace graft::sharding
