#include "sharding/checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"

namespace graft::sharding {
namespace {

constexpr char kTempMark[] = ".tmp-";
constexpr char kBadMark[] = ".bad-";
constexpr char kTrashPrefix[] = ".trash-";
constexpr char kStartsName[] = "starts.jsonl";
constexpr char kLatestName[] = "LATEST";
constexpr char kRecipeName[] = "recipe.yaml";
constexpr int64_t kMaxStartsBytes = int64_t{16} << 20;

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string FilesText(const std::vector<CheckpointFile>& files) {
  nlohmann::json list = nlohmann::json::array();
  for (const CheckpointFile& file : files) list.push_back({file.file, file.bytes, file.sha256});
  return list.dump();
}

// Of all ranks, sorted by name.
std::vector<CheckpointFile> MergeFiles(const std::vector<std::string>& texts) {
  std::vector<CheckpointFile> files;
  for (const std::string& text : texts) {
    for (const nlohmann::json& entry : nlohmann::json::parse(text)) {
      files.push_back(
          {entry[0].get<std::string>(), entry[1].get<int64_t>(), entry[2].get<std::string>()});
    }
  }
  std::sort(files.begin(), files.end(),
            [](const CheckpointFile& a, const CheckpointFile& b) { return a.file < b.file; });
  for (size_t i = 1; i < files.size(); ++i) {
    GRAFT_CHECK(files[i].file != files[i - 1].file,
                absl::StrCat("two stages wrote ", files[i].file));
  }
  return files;
}

// A bad file is an error of the checkpoint, not of the user's input.
absl::Status AsIo(const absl::Status& status) {
  return status.ok() ? status : IoError(std::string(status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpointer>> Checkpointer::Open(comm::Communicator& world,
                                                                 comm::RankGrid grid,
                                                                 CheckpointOptions options) {
  auto result = std::unique_ptr<Checkpointer>(new Checkpointer(world, grid, std::move(options)));
  absl::Status status;
  if (world.rank() == 0) status = result->CleanFolder();
  GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world, status)));
  world.Broadcast({&result->start_, 1, comm::DType::kInt64, -1}, 0);
  return result;
}

std::string Checkpointer::Path(const std::string& name) const {
  return JoinPath(options_.folder, name);
}

absl::Status Checkpointer::CleanFolder() {
  GRAFT_RETURN_IF_ERROR(MakeDirs(options_.folder));
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(options_.folder));
  for (const std::string& name : names) {
    if (Contains(name, kTempMark) || name.compare(0, sizeof(kTrashPrefix) - 1, kTrashPrefix) == 0) {
      GRAFT_RETURN_IF_ERROR(RemoveTree(Path(name)));
    }
  }
  if (PathExists(Path(kStartsName))) {
    GRAFT_ASSIGN_OR_RETURN(const std::string starts, ReadFile(Path(kStartsName), kMaxStartsBytes));
    start_ = 1 + std::count(starts.begin(), starts.end(), '\n');
  }
  return absl::OkStatus();
}

absl::Status Checkpointer::CountStart(int64_t from_step) const {
  std::string starts;
  if (PathExists(Path(kStartsName))) {
    GRAFT_ASSIGN_OR_RETURN(starts, ReadFile(Path(kStartsName), kMaxStartsBytes));
  }
  const nlohmann::json line = {{"start", start_}, {"from_step", from_step}};
  return AtomicWriteFile(Path(kStartsName), starts + line.dump() + "\n");
}

absl::StatusOr<SavedCheckpoint> Checkpointer::Save(const RunProgress& progress,
                                                   const TrainedState& state) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string name = StepFolderName(progress.step);
  const std::string temp = absl::StrFormat("%s%s%04d", name, kTempMark, start_);
  absl::Status status;
  if (world_.rank() == 0) {
    status = RemoveTree(Path(temp));
    if (status.ok()) status = MakeDirs(JoinPath(Path(temp), kShardFolder));
  }
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(world_, status));

  std::vector<CheckpointFile> mine;
  if (grid_.DataRank(world_.rank()) == 0) {
    absl::StatusOr<std::vector<CheckpointFile>> written =
        WriteShards(Path(temp), options_.num_layers, state);
    status = written.status();
    if (written.ok()) mine = *std::move(written);
  }
  status = comm::AgreeOnStatus(world_, status);
  std::vector<CheckpointFile> files = MergeFiles(comm::AllGatherStrings(world_, FilesText(mine)));
  SavedCheckpoint saved{Path(name), 0, 0};
  for (const CheckpointFile& file : files) saved.bytes += file.bytes;
  if (world_.rank() == 0) {
    if (status.ok()) status = Commit(temp, name, progress, std::move(files));
    for (const absl::Status& removed : {RemoveTree(Path(temp)), RemoveOld(name)}) {
      if (!removed.ok()) LOG(WARNING) << "old checkpoints: " << removed.message();
    }
  }
  GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world_, status)));
  saved.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return saved;
}

absl::Status Checkpointer::Commit(const std::string& temp, const std::string& name,
                                  const RunProgress& progress,
                                  std::vector<CheckpointFile> files) const {
  GRAFT_RETURN_IF_ERROR(SyncFolder(JoinPath(Path(temp), kShardFolder)));
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(JoinPath(Path(temp), kRecipeName), options_.recipe));
  files.insert(files.begin(), {kRecipeName, static_cast<int64_t>(options_.recipe.size()),
                               Sha256Hex(options_.recipe)});
  Manifest manifest;
  manifest.step = progress.step;
  manifest.updates = progress.updates;
  manifest.skipped = progress.skipped;
  manifest.start = start_;
  manifest.fixed = options_.fixed;
  manifest.layout = options_.layout;
  manifest.state = progress.state;
  manifest.files = std::move(files);
  GRAFT_RETURN_IF_ERROR(
      AtomicWriteFile(JoinPath(Path(temp), kManifestName), ManifestText(manifest)));
  if (PathExists(Path(name))) {
    const absl::Status existing = ValidateCheckpoint(Path(name)).status();
    if (existing.ok()) return absl::OkStatus();
    GRAFT_RETURN_IF_ERROR(Quarantine(name, existing));
  }
  GRAFT_RETURN_IF_ERROR(RenamePath(Path(temp), Path(name)));
  GRAFT_RETURN_IF_ERROR(SyncFolder(options_.folder));
  return AtomicWriteFile(Path(kLatestName), name + "\n");
}

absl::Status Checkpointer::RemoveOld(const std::string& committed) const {
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListStepFolders(options_.folder));
  for (size_t i = static_cast<size_t>(std::max<int64_t>(options_.keep, 1)); i < names.size(); ++i) {
    if (names[i] == committed) continue;
    const std::string trash = Path(kTrashPrefix + names[i]);
    GRAFT_RETURN_IF_ERROR(RenamePath(Path(names[i]), trash));
    GRAFT_RETURN_IF_ERROR(RemoveTree(trash));
  }
  return absl::OkStatus();
}

absl::Status Checkpointer::Quarantine(const std::string& name, const absl::Status& reason) const {
  int number = 1;
  while (PathExists(Path(absl::StrCat(name, kBadMark, number)))) ++number;
  const std::string bad = absl::StrCat(name, kBadMark, number);
  LOG(WARNING) << "checkpoint " << Path(name) << " is not valid (" << reason.message()
               << "); it is now " << bad << ", trying the next older one";
  return RenamePath(Path(name), Path(bad));
}

// The folder of the newest valid checkpoint, empty when there was never one.
absl::StatusOr<std::string> Checkpointer::FindCandidate(const std::string& resume) const {
  const auto compare = [this](const Manifest& manifest, const std::string& folder) {
    return CompareFixed(manifest.fixed, options_.fixed, folder);
  };
  if (resume != "auto" && resume != "never") {
    const absl::StatusOr<Manifest> manifest = ValidateCheckpoint(resume);
    if (!manifest.ok()) return AsIo(Annotate(manifest.status(), "checkpoint.resume"));
    GRAFT_RETURN_IF_ERROR(compare(*manifest, resume));
    return resume;
  }
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListStepFolders(options_.folder));
  if (resume == "never") {
    if (names.empty()) return std::string();
    return IoError(absl::StrCat("checkpoint.resume: `never`, but ", options_.folder, " holds ",
                                names[0], "; allowed are `auto`, or another run.output"));
  }
  for (const std::string& name : names) {
    const absl::StatusOr<Manifest> manifest = ValidateCheckpoint(Path(name));
    if (manifest.ok()) {
      GRAFT_RETURN_IF_ERROR(compare(*manifest, Path(name)));
      return Path(name);
    }
    // What the system refuses to read now may be readable later.
    if (KindOf(manifest.status()) == ErrorKind::kIo) return manifest.status();
    GRAFT_RETURN_IF_ERROR(Quarantine(name, manifest.status()));
  }
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> left, ListFolder(options_.folder));
  for (const std::string& name : left) {
    if (!Contains(name, kBadMark)) continue;
    return IoError(absl::StrCat(options_.folder, ": no valid checkpoint is left, only ones like ",
                                name,
                                "; allowed are a valid one, or another run.output to begin "
                                "at step 0"));
  }
  return std::string();
}

absl::StatusOr<std::optional<ResumedCheckpoint>> Checkpointer::Resume(const std::string& resume,
                                                                      const TrainedState& state) {
  const bool falls_back = resume == "auto";
  for (;;) {
    std::string folder;
    absl::Status status;
    if (world_.rank() == 0) {
      absl::StatusOr<std::string> candidate = FindCandidate(resume);
      status = candidate.status();
      if (candidate.ok()) folder = *std::move(candidate);
    }
    GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world_, status)));
    folder = comm::BroadcastString(world_, folder, 0);
    if (folder.empty()) {
      if (world_.rank() == 0) status = CountStart(0);
      GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world_, status)));
      return std::optional<ResumedCheckpoint>();
    }

    absl::StatusOr<FlatState> flat = ReadShards(folder, options_.num_layers, *state.set);
    absl::StatusOr<Manifest> manifest = ValidateCheckpoint(folder);
    status = comm::AgreeOnStatus(world_, flat.ok() ? manifest.status() : flat.status());
    if (!status.ok()) {
      if (!falls_back || KindOf(status) != ErrorKind::kInput) return AsIo(status);
      absl::Status renamed;
      if (world_.rank() == 0) renamed = Quarantine(Basename(folder), status);
      GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world_, renamed)));
      continue;
    }
    at::NoGradGuard no_grad;
    state.set->values().detach().copy_(flat->values);
    state.exp_avg.copy_(flat->exp_avg);
    state.exp_avg_sq.copy_(flat->exp_avg_sq);
    if (world_.rank() == 0) status = CountStart(manifest->step);
    GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world_, status)));
    ResumedCheckpoint resumed;
    resumed.progress = {manifest->step, manifest->updates, manifest->skipped, manifest->state};
    resumed.path = folder;
    resumed.layout = manifest->layout;
    return std::optional<ResumedCheckpoint>(std::move(resumed));
  }
}

}  // namespace graft::sharding
