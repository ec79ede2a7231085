// The trained state of one rank between the adapter set and checkpoint shards: a copy of what this
// rank writes, and what it reads back. Used by the checkpointer. Knows no ranks and no folders'
// names.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapters/adapter_set.h"
#include "sharding/checkpoint_writer.h"
#include "sharding/manifest.h"

namespace graft::sharding {

// This rank's trained state. Everything else than the set: (P) float32 in the layout of
// set->values().
struct TrainedState {
  adapters::AdapterSet* set = nullptr;
  torch::Tensor exp_avg;
  torch::Tensor exp_avg_sq;
  // By kind, its first part of a tensor's key in the manifest ("sensitivity"); never negative.
  std::vector<std::pair<std::string, torch::Tensor>> averages = {};
};

// A copy by value of the units that this rank writes, in host memory that stays for the next save:
// training goes on while a thread writes it.
class StateSnapshot {
 public:
  // `first_word`: of each parameter, by name, among the whole job's.
  StateSnapshot(const TrainedState& state, int num_layers,
                const std::map<std::string, uint64_t>& first_word,
                const std::function<bool(int layer)>& owns);
  // The buffers may not be in use by a writer.
  void Copy(const TrainedState& state);
  // Pointers into this object.
  const std::map<std::string, std::vector<StateToWrite>>& units() const { return units_; }
  int tensors_each() const { return 3 + static_cast<int>(averages_.size()); }  // of each parameter

 private:
  struct Piece {
    int64_t from = 0, to = 0, count = 0;  // offsets in the set's and in these buffers
  };
  std::vector<Piece> pieces_;
  torch::Tensor values_, exp_avg_, exp_avg_sq_;
  std::vector<torch::Tensor> averages_;
  std::map<std::string, std::vector<StateToWrite>> units_;
};

// Flat (P) float32 CPU copies in the layout of an adapter set; `averages` as in TrainedState.
struct FlatState {
  torch::Tensor values, exp_avg, exp_avg_sq;
  std::vector<torch::Tensor> averages = {};
};
// Checks every shard that holds a parameter of state.set in full and copies what `state` has.
// Errors: kind input naming file and tensor, kind io.
absl::StatusOr<FlatState> ReadShards(const std::string& folder, const Manifest& manifest,
                                     const TrainedState& state);

// Every live tensor against its hash64 in the manifest. Kind bug: memory is not what was read.
absl::Status CheckLiveTensors(const Manifest& manifest, const TrainedState& state);

}  // namespace graft::sharding
