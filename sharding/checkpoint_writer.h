// The steps of a commit (reliability.md 1.3) as one rank does them, on plain memory: write a shard,
// commit the folder, remove old ones. Used by the checkpointer, on its writer thread, and by the
// fault tests. Every call goes through base/io_calls.h. Links without LibTorch and MPI.
//
// A crash at any instant leaves the old or the new checkpoint valid: the rename of the complete
// temp folder is the commit, and everything in it is on disk before.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sharding/manifest.h"

namespace graft::sharding {

// Name and shape of a trained parameter of the whole job.
struct ParameterShape {
  std::string name;
  std::vector<int64_t> shape;
  int64_t count() const;
};

// The shard that a parameter belongs to: "layer-0007" of its global layer; parameters outside the
// layers (layer = num_layers) "prompt" (soft prompts and their generators), "embed" or "head", by
// their name.
std::string UnitOf(const std::string& name, int layer, int num_layers);
// "shards/UNIT.safetensors".
std::string ShardFile(const std::string& unit);

// One parameter, its moments and what else is kept for it in host memory, all of one shape.
struct StateToWrite {
  ParameterShape parameter;
  uint64_t first_word = 0;  // of the parameter among all of the job in name order
  const float* value = nullptr;
  const float* exp_avg = nullptr;
  const float* exp_avg_sq = nullptr;
  std::vector<std::pair<std::string, const float*>> averages = {};  // TrainedState::averages
};

struct WrittenShard {
  CheckpointFile file;
  std::vector<TensorEntry> tensors;
  uint64_t hash_part = 0;  // of AdapterInfo::hash64
};

// Step 2: <checkpoints>/<temp>/shards, in place of what has that name.
absl::Status MakeTempFolder(const std::string& checkpoints, const std::string& temp);

// Step 3: writes one unit below <folder>/shards, durable. Kind io.
absl::StatusOr<WrittenShard> WriteShard(const std::string& folder, const std::string& unit,
                                        const std::vector<StateToWrite>& states);

// For the way to rank 0.
std::string WrittenText(const std::vector<WrittenShard>& shards);
absl::StatusOr<std::vector<WrittenShard>> ParseWritten(const std::string& text);

struct CommitJob {
  std::string checkpoints;               // the folder of all
  std::string temp;                      // name of the folder that holds the shards
  Manifest manifest;                     // complete but for files, tensors and the adapter's hash
  std::string recipe;                    // text of recipe.yaml
  std::vector<WrittenShard> shards;      // of all ranks
  std::vector<ParameterShape> expected;  // of the whole job, sorted by name
  int tensors_each = 3;  // of each parameter: itself, its moments, what else is kept
  // Makes durable what must not be older than the checkpoint (metrics.jsonl).
  std::function<absl::Status()> before_manifest;
};

// Steps 5 to 8 without retention. A valid folder of that step stays and the new one goes; kind bug
// when both were saved on one layout and their tensors differ. Returns the bytes of the files. Kind
// io: nothing was committed, the older checkpoints are as they were.
absl::StatusOr<int64_t> CommitCheckpoint(const CommitJob& job);

// Moves the committed folders beyond the newest `keep` away, except those of `spared`, and removes
// them.
absl::Status RemoveOldCheckpoints(const std::string& checkpoints, int64_t keep,
                                  const std::set<std::string>& spared);
// What crashed saves and removals have left behind.
absl::Status RemoveLeftovers(const std::string& checkpoints);
// Writable, with room for `bytes`, and able to rename within itself. Kind io.
absl::Status CheckRoom(const std::string& checkpoints, int64_t bytes);

}  // namespace graft::sharding
