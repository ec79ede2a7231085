// Writes and reads the training state of all ranks: adapter parameters and optimizer moments, keyed
// by unit and parameter and never by rank, so that any layout can load what any other has saved.
// Used by the trainer at step boundaries. The folder's format: manifest.h; the commit:
// checkpoint_writer.h; docs/checkpoints.md tells it as a whole.
//
// A save runs beside the training: StartSave copies the state, a thread of each rank writes its
// shards, the next step boundary after all are done gathers what was written, a thread of rank 0
// commits, and a later boundary books the result. Threads never talk to other ranks; the ranks
// agree through the control vector (Vote, Advance). It knows no optimizer and no recipe: moments
// are flat buffers, what must not change is a map of texts.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/background_task.h"
#include "comm/communicator.h"
#include "comm/rank_grid.h"
#include "sharding/checkpoint_writer.h"
#include "sharding/manifest.h"
#include "sharding/shards.h"
#include "sharding/start_log.h"

namespace graft::sharding {

struct CheckpointOptions {
  std::string folder;  // <output>/checkpoints
  int64_t keep = 3;    // newest ones
  int num_layers = 0;  // of the model: names the shards
  std::string recipe;  // the resolved recipe, stored beside
  TextMap fixed;       // must be equal on resume: fingerprints, adapter, optimizer, data, ...
  // The same texts of a saved checkpoint, from its manifest and its recipe.yaml. Rank 0.
  std::function<absl::StatusOr<TextMap>(const Manifest& manifest, const std::string& recipe)>
      fixed_of;
  // Before a manifest is written, on rank 0's writer thread: makes metrics.jsonl durable.
  std::function<absl::Status()> before_manifest;
};

// A save that came to its end, well or not; the same on every rank but for the numbers, which are
// rank 0's.
struct SaveResult {
  absl::Status status;  // kind io: nothing was committed, older checkpoints are as they were
  int64_t step = 0;
  std::string name;            // of the folder
  int64_t bytes = 0;           // of all files
  double seconds = 0;          // from StartSave to the commit
  double stalled_seconds = 0;  // of these the training stood still
};

struct ResumedCheckpoint {
  Manifest manifest;
  std::string path;
};

class Checkpointer {
 public:
  // Makes the folder, removes what crashed saves left behind, checks that it is writable and has
  // room, numbers this start. `world` and the set of `state` must outlive the checkpointer. All
  // ranks must call, and get the same status (kind io).
  static absl::StatusOr<std::unique_ptr<Checkpointer>> Open(comm::Communicator& world,
                                                            comm::RankGrid grid,
                                                            CheckpointOptions options,
                                                            const TrainedState& state);

  // Where to go on. `resume`: "auto" = the newest valid checkpoint of the folder, invalid ones are
  // renamed to *.bad-K with a warning; "never" = nothing, but an error when the folder holds one;
  // else a checkpoint folder, without fallback. nullopt = begin at step 0. All ranks must call and
  // get the same result. Errors: kind io; a difference in `fixed` or in the parameters names both
  // sides; checkpoints that exist but are all invalid never mean step 0. `state` changes only on
  // success.
  absl::StatusOr<std::optional<ResumedCheckpoint>> Resume(const std::string& resume,
                                                          const TrainedState& state);

  // Begins a save at a step boundary; none may be under way. `manifest`: everything but run id,
  // start, time, files, tensors and hash. All ranks must call and get the same status (kind io,
  // kind bug); after an error nothing is under way.
  absl::Status StartSave(Manifest manifest, const TrainedState& state);
  bool saving() const { return phase_ != Phase::kIdle; }

  // This rank's entry for the control vector: its part of the save has ended well / badly since.
  struct Vote {
    double done = 0, failed = 0;
  };
  Vote CastVote() const;
  // The votes summed over all ranks, at a step boundary: takes the next step of the save when every
  // rank is ready for it. All ranks must call with equal sums. A result when the save has ended.
  std::optional<SaveResult> Advance(const Vote& total);
  // Takes the save under way to its end. All ranks must call; `saving()` must hold.
  SaveResult Wait();

  // The ranks of each stage hold the same adapter, by hash64: else kind bug on all ranks. StartSave
  // asks it too. All ranks must call.
  absl::Status CheckReplicas(const TrainedState& state);

  // Spares the checkpoint of this step from removal: the best so far by evaluation.
  void SpareBest(int64_t step) { best_step_ = step; }
  // For the log of starts: the run is finished or was stopped on request. Rank 0, no save under
  // way. Kind io.
  absl::Status NoteOrderlyEnd() { return starts_->EndedOrderly(); }

 private:
  enum class Phase { kIdle, kShards, kCommit };
  Checkpointer(comm::Communicator& world, comm::RankGrid grid, CheckpointOptions options)
      : world_(world), grid_(grid), options_(std::move(options)) {}
  bool IsRankZero() const { return world_.rank() == 0; }
  std::string Path(const std::string& name) const;
  absl::Status OpenFolder();
  void CollectParameters(const TrainedState& state);
  absl::Status CompareReplicas(const TrainedState& state);

  // On writer threads.
  absl::Status WriteMyShards();
  absl::Status Commit(const CommitJob& job, std::set<std::string> spared);
  // Both collective, with the writer of this rank at its end. A result when the save has ended.
  std::optional<SaveResult> EndShards();
  SaveResult EndCommit();
  SaveResult EndSave(const absl::Status& status);

  // checkpoint_resume.cc
  absl::StatusOr<std::string> FindCandidate(const std::string& resume) const;
  absl::Status CheckCandidate(const std::string& folder) const;
  absl::Status QuarantineFolder(const std::string& folder, const absl::Status& reason) const;
  absl::Status Begin(const std::optional<ResumedCheckpoint>& resumed);

  comm::Communicator& world_;
  const comm::RankGrid grid_;
  const CheckpointOptions options_;
  std::unique_ptr<comm::Communicator> replicas_;  // the ranks of this stage
  std::vector<ParameterShape> parameters_;        // of the job, sorted by name
  std::optional<StartLog> starts_;                // rank 0
  int64_t start_ = 1;
  std::string run_id_;
  std::string resumed_name_;  // of the folder here that this start resumed from
  int64_t best_step_ = 0;
  int commits_ = 0;  // of this start

  Phase phase_ = Phase::kIdle;
  std::unique_ptr<StateSnapshot> snapshot_;
  Manifest manifest_;                  // of the save under way
  std::string temp_;                   // its folder's name
  std::vector<WrittenShard> written_;  // by this rank's writer
  int64_t committed_bytes_ = 0;        // by rank 0's writer
  std::chrono::steady_clock::time_point began_;
  double stalled_seconds_ = 0;
  BackgroundTask writer_;  // last: joined before what it uses goes
};

}  // namespace graft::sharding
