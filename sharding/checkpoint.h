// Writes and reads the training state of all ranks: adapter parameters and optimizer moments, keyed
// by unit and parameter and never by rank, so that any layout can load what any other has saved.
// Used by the trainer at step boundaries. The folder's format: manifest.h and reliability.md 1.
//
// A save becomes visible by one rename; a crash at any instant leaves the old or the new checkpoint
// valid. It saves synchronously, knows no optimizer and no recipe: moments are flat buffers, what
// must not change is a map of texts.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "comm/rank_grid.h"
#include "sharding/manifest.h"
#include "sharding/shards.h"

namespace graft::sharding {

// Where the run stands, the same on every rank.
struct RunProgress {
  int64_t step = 0;     // finished steps
  int64_t updates = 0;  // applied updates
  int64_t skipped = 0;  // step = updates + skipped
  TextMap state;        // what the trainer wants back: best metric, ...
};

struct CheckpointOptions {
  std::string folder;  // <output>/checkpoints
  int64_t keep = 3;    // newest ones
  int num_layers = 0;  // of the model: names the shards
  std::string recipe;  // the resolved recipe, stored beside
  TextMap fixed;       // must be equal on resume: fingerprints, adapter, optimizer, schedule, data
  TextMap layout;      // stored and logged
};

struct SavedCheckpoint {
  std::string path;
  int64_t bytes = 0;  // of the shards
  double seconds = 0;
};

struct ResumedCheckpoint {
  RunProgress progress;
  std::string path;
  TextMap layout;  // of the run that saved it
};

class Checkpointer {
 public:
  // Makes the folder, removes what crashed saves left behind, counts this start. `world` must
  // outlive the checkpointer. All ranks must call, and get the same status (kind io).
  static absl::StatusOr<std::unique_ptr<Checkpointer>> Open(comm::Communicator& world,
                                                            comm::RankGrid grid,
                                                            CheckpointOptions options);

  // Commits a checkpoint of progress.step, then removes those beyond `keep`. All ranks must call at
  // a step boundary and get the same status (kind io; an older checkpoint is not harmed). A valid
  // checkpoint of that step stays as it is.
  absl::StatusOr<SavedCheckpoint> Save(const RunProgress& progress, const TrainedState& state);

  // Where to go on. `resume`: "auto" = the newest valid checkpoint of the folder, invalid ones are
  // renamed to *.bad-K with a warning; "never" = nothing, but an error when the folder holds one;
  // else a checkpoint folder, without fallback. nullopt = begin at step 0. All ranks must call and
  // get the same result. Errors: kind io; a difference in `fixed` names both values; checkpoints
  // that exist but are all invalid never mean step 0. `state` changes only on success.
  absl::StatusOr<std::optional<ResumedCheckpoint>> Resume(const std::string& resume,
                                                          const TrainedState& state);

 private:
  Checkpointer(comm::Communicator& world, comm::RankGrid grid, CheckpointOptions options)
      : world_(world), grid_(grid), options_(std::move(options)) {}
  std::string Path(const std::string& name) const;
  // On rank 0.
  absl::Status CleanFolder();
  absl::Status Commit(const std::string& temp, const std::string& name, const RunProgress& progress,
                      std::vector<CheckpointFile> files) const;
  absl::Status RemoveOld(const std::string& committed) const;
  absl::Status Quarantine(const std::string& name, const absl::Status& reason) const;
  absl::StatusOr<std::string> FindCandidate(const std::string& resume) const;
  absl::Status CountStart(int64_t from_step) const;

  comm::Communicator& world_;
  const comm::RankGrid grid_;
  const CheckpointOptions options_;
  int64_t start_ = 1;
};

}  // namespace graft::sharding
