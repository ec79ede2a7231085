// How a run finds the checkpoint to go on from (reliability.md 1.4).
#include <ATen/ATen.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"
#include "sharding/checkpoint.h"
#include "sharding/checkpoint_folder.h"
#include "sharding/resume_rules.h"

namespace graft::sharding {
namespace {

constexpr int64_t kMaxRecipeBytes = int64_t{1} << 20;

absl::Status AsIo(const absl::Status& status) {
  return status.ok() ? status : IoError(std::string(status.message()));
}

}  // namespace

// Manifest and recipe are whole, and of this run. Kind input = not valid; kind io = valid, but of
// another run, or not readable.
absl::Status Checkpointer::CheckCandidate(const std::string& folder) const {
  GRAFT_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(folder));
  for (const CheckpointFile& file : manifest.files) {
    if (file.file == manifest.recipe.file) GRAFT_RETURN_IF_ERROR(CheckFile(folder, file));
  }
  GRAFT_ASSIGN_OR_RETURN(const std::string recipe,
                         ReadFile(JoinPath(folder, manifest.recipe.file), kMaxRecipeBytes));
  GRAFT_ASSIGN_OR_RETURN(const TextMap saved, options_.fixed_of(manifest, recipe));
  GRAFT_RETURN_IF_ERROR(CompareFixed(saved, options_.fixed, folder));
  return CompareParameters(manifest, parameters_, folder);
}

absl::Status Checkpointer::QuarantineFolder(const std::string& folder,
                                            const absl::Status& reason) const {
  GRAFT_ASSIGN_OR_RETURN(const std::string bad, Quarantine(options_.folder, Basename(folder)));
  LOG(WARNING) << "checkpoint " << folder << " is not valid (" << reason.message()
               << "); it is now " << bad << ", trying the next older one";
  return absl::OkStatus();
}

// The folder of the newest checkpoint that may be valid, empty when there was never one.
absl::StatusOr<std::string> Checkpointer::FindCandidate(const std::string& resume) const {
  if (resume != "auto" && resume != "never") {
    GRAFT_RETURN_IF_ERROR(Annotate(CheckCandidate(resume), "checkpoint.resume"));
    return resume;
  }
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListStepFolders(options_.folder));
  if (resume == "never") {
    if (names.empty()) return std::string();
    return IoError(absl::StrCat("checkpoint.resume: `never`, but ", options_.folder, " holds ",
                                names[0], "; allowed are `auto`, or another run.output"));
  }
  for (const std::string& name : names) {
    const absl::Status status = CheckCandidate(Path(name));
    if (status.ok()) return Path(name);
    // A refusal; or what the system does not let us read now and may later.
    if (KindOf(status) != ErrorKind::kInput) return status;
    GRAFT_RETURN_IF_ERROR(QuarantineFolder(Path(name), status));
  }
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> left, ListFolder(options_.folder));
  for (const std::string& name : left) {
    if (!absl::StrContains(name, kBadMark)) continue;
    return IoError(absl::StrCat(options_.folder, ": no valid checkpoint is left, only ones like ",
                                name,
                                "; allowed are a valid one, or another run.output to begin "
                                "at step 0"));
  }
  return std::string();
}

absl::Status Checkpointer::Begin(const std::optional<ResumedCheckpoint>& resumed) {
  const int64_t step = resumed.has_value() ? resumed->manifest.step : 0;
  absl::Status status;
  if (IsRankZero()) {
    if (starts_->LooksStuck(step)) {
      const auto names = ListStepFolders(options_.folder);
      std::string older;
      for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
        if (*ParseStepFolderName(name) < step) absl::StrAppend(&older, " ", name);
      }
      LOG(WARNING) << "the last two starts from step " << step
                   << " ended without a newer checkpoint and not on request; to go back further "
                      "set checkpoint.resume to an older one:"
                   << (older.empty() ? " (there is none)" : older);
    }
    status = starts_->Begin(step);
  }
  GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world_, status)));
  if (resumed.has_value()) {
    run_id_ = resumed->manifest.run_id;
    if (FolderOf(resumed->path) == options_.folder) resumed_name_ = Basename(resumed->path);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<ResumedCheckpoint>> Checkpointer::Resume(const std::string& resume,
                                                                      const TrainedState& state) {
  for (;;) {
    std::string folder;
    absl::Status status;
    if (IsRankZero()) {
      absl::StatusOr<std::string> candidate = FindCandidate(resume);
      status = candidate.status();
      if (candidate.ok()) folder = *std::move(candidate);
    }
    GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world_, status)));
    folder = comm::BroadcastString(world_, folder, 0);
    std::optional<ResumedCheckpoint> resumed;
    if (folder.empty()) {
      GRAFT_RETURN_IF_ERROR(Begin(resumed));
      return resumed;
    }
    // Together the ranks read every shard: each checks those of its parameters.
    Manifest manifest;
    const auto read = [&]() -> absl::StatusOr<FlatState> {
      GRAFT_ASSIGN_OR_RETURN(manifest, ReadManifest(folder));
      return ReadShards(folder, manifest, state);
    };
    const absl::StatusOr<FlatState> flat = read();
    status = comm::AgreeOnStatus(world_, flat.status());
    if (!status.ok()) {
      if (resume != "auto" || KindOf(status) != ErrorKind::kInput) return AsIo(status);
      absl::Status renamed;
      if (IsRankZero()) renamed = QuarantineFolder(folder, status);
      GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world_, renamed)));
      continue;
    }
    {
      at::NoGradGuard no_grad;
      state.set->values().detach().copy_(flat->values);
      state.exp_avg.copy_(flat->exp_avg);
      state.exp_avg_sq.copy_(flat->exp_avg_sq);
      for (size_t k = 0; k < state.averages.size(); ++k)
        state.averages[k].second.copy_(flat->averages[k]);
    }
    GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(world_, CheckLiveTensors(manifest, state)));
    resumed = ResumedCheckpoint{std::move(manifest), folder};
    GRAFT_RETURN_IF_ERROR(Begin(resumed));
    return resumed;
  }
}

}  // namespace graft::sharding
