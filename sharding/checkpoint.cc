#include "sharding/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/logging.h"
#include "base/status.h"
#include "base/text.h"
#include "base/version.h"
#include "comm/agree.h"
#include "sharding/checkpoint_folder.h"

namespace graft::sharding {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// What the file system says about a checkpoint is kind io, whatever the reader called it.
absl::Status AsIo(const absl::Status& status) {
  if (status.ok() || KindOf(status) != ErrorKind::kInput) return status;
  return IoError(std::string(status.message()));
}

std::string NewRunId() {
  std::random_device random;
  const auto word = [&random] { return uint64_t{random()} << 32 | random(); };
  return Hex64(word()) + Hex64(word());
}

std::string ParametersText(const adapters::AdapterSet& set) {
  nlohmann::json list = nlohmann::json::array();
  for (const adapters::NamedParameter& parameter : set.parameters()) {
    list.push_back({parameter.name, parameter.value.sizes().vec()});
  }
  return list.dump();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpointer>> Checkpointer::Open(comm::Communicator& world,
                                                                 comm::RankGrid grid,
                                                                 CheckpointOptions options,
                                                                 const TrainedState& state) {
  auto result = std::unique_ptr<Checkpointer>(new Checkpointer(world, grid, std::move(options)));
  result->replicas_ =
      world.Split(grid.PipelineRank(world.rank()), grid.DataRank(world.rank()), "replicas");
  result->CollectParameters(state);
  absl::Status status;
  if (world.rank() == 0) status = result->OpenFolder();
  GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world, status)));
  world.Broadcast({&result->start_, 1, comm::DType::kInt64, -1}, 0);
  result->run_id_ = comm::BroadcastString(world, world.rank() == 0 ? NewRunId() : "", 0);
  return result;
}

std::string Checkpointer::Path(const std::string& name) const {
  return JoinPath(options_.folder, name);
}

absl::Status Checkpointer::OpenFolder() {
  GRAFT_RETURN_IF_ERROR(MakeDirs(options_.folder));
  GRAFT_RETURN_IF_ERROR(SyncFolder(FolderOf(options_.folder)));
  GRAFT_RETURN_IF_ERROR(RemoveLeftovers(options_.folder));
  int64_t numbers = 0;
  for (const ParameterShape& parameter : parameters_) numbers += 3 * parameter.count();
  GRAFT_RETURN_IF_ERROR(CheckRoom(options_.folder, numbers * int64_t{sizeof(float)}));
  GRAFT_ASSIGN_OR_RETURN(starts_, StartLog::Open(options_.folder));
  start_ = starts_->number();
  return absl::OkStatus();
}

// Every rank learns the parameters of all stages: what a save must hold, and where in the adapter's
// hash each one stands. The units of a stage are dealt to its replicas.
void Checkpointer::CollectParameters(const TrainedState& state) {
  const int data_rank = grid_.DataRank(world_.rank());
  for (const std::string& text :
       comm::AllGatherStrings(world_, data_rank == 0 ? ParametersText(*state.set) : "[]")) {
    for (const nlohmann::json& entry : nlohmann::json::parse(text)) {
      parameters_.push_back({entry[0].get<std::string>(), entry[1].get<std::vector<int64_t>>()});
    }
  }
  std::sort(parameters_.begin(), parameters_.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  std::map<std::string, uint64_t> first_word;
  uint64_t word = 0;
  for (const ParameterShape& parameter : parameters_) {
    GRAFT_CHECK(first_word.emplace(parameter.name, word).second,
                absl::StrCat("two stages train ", parameter.name));
    word += static_cast<uint64_t>(parameter.count());
  }
  snapshot_ = std::make_unique<StateSnapshot>(
      state, options_.num_layers, first_word,
      [this, data_rank](int layer) { return layer % grid_.data == data_rank; });
}

absl::Status Checkpointer::CheckReplicas(const TrainedState& state) {
  return comm::AgreeOnStatus(world_, CompareReplicas(state));
}

// The ranks of one stage agree; the others do not know.
absl::Status Checkpointer::CompareReplicas(const TrainedState& state) {
  if (replicas_->size() == 1) return absl::OkStatus();
  const torch::Tensor values = state.set->values().detach().to(torch::kCPU);
  const auto hash = static_cast<int64_t>(
      Hash64(values.data_ptr<float>(), static_cast<size_t>(values.numel()) * sizeof(float)));
  int64_t extremes[2] = {hash, ~hash};  // the largest of ~hash is ~ of the smallest
  replicas_->AllReduce({extremes, 2, comm::DType::kInt64, -1}, comm::ReduceOp::kMax);
  if (extremes[0] == ~extremes[1]) return absl::OkStatus();
  return BugError(absl::StrCat("the replicas of stage ", grid_.PipelineRank(world_.rank()),
                               " hold different adapters: hash64 from ",
                               Hex64(static_cast<uint64_t>(~extremes[1])), " to ",
                               Hex64(static_cast<uint64_t>(extremes[0])), "; nothing was saved"));
}

absl::Status Checkpointer::StartSave(Manifest manifest, const TrainedState& state) {
  GRAFT_CHECK(!saving(), "a save is under way");
  began_ = Clock::now();
  temp_ = absl::StrFormat("%s%s%04d", StepFolderName(manifest.step), kTempMark, start_);
  absl::Status status = CompareReplicas(state);
  if (status.ok() && IsRankZero()) status = MakeTempFolder(options_.folder, temp_);
  GRAFT_RETURN_IF_ERROR(AsIo(comm::AgreeOnStatus(world_, status)));
  manifest_ = std::move(manifest);
  manifest_.graft_version = Version();
  manifest_.run_id = run_id_;
  manifest_.start = start_;
  manifest_.created = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  snapshot_->Copy(state);
  written_.clear();
  phase_ = Phase::kShards;
  writer_.Start([this] { return WriteMyShards(); });
  stalled_seconds_ = SecondsSince(began_);
  return absl::OkStatus();
}

absl::Status Checkpointer::WriteMyShards() {
  for (const auto& [unit, states] : snapshot_->units()) {
    GRAFT_ASSIGN_OR_RETURN(WrittenShard shard, WriteShard(Path(temp_), unit, states));
    written_.push_back(std::move(shard));
  }
  return absl::OkStatus();
}

Checkpointer::Vote Checkpointer::CastVote() const {
  Vote vote;
  if (writer_.active() && writer_.finished()) (writer_.failed() ? vote.failed : vote.done) = 1;
  return vote;
}

std::optional<SaveResult> Checkpointer::Advance(const Vote& total) {
  if (phase_ == Phase::kIdle) return std::nullopt;
  const double wanted = phase_ == Phase::kShards ? world_.size() : 1;
  if (total.done + total.failed < wanted) return std::nullopt;
  const Clock::time_point begin = Clock::now();
  std::optional<SaveResult> result;
  if (phase_ == Phase::kShards) {
    result = EndShards();
  } else {
    result = EndCommit();
  }
  stalled_seconds_ += SecondsSince(begin);
  if (result.has_value()) result->stalled_seconds = stalled_seconds_;
  return result;
}

SaveResult Checkpointer::Wait() {
  GRAFT_CHECK(saving(), "no save is under way");
  const Clock::time_point begin = Clock::now();
  std::optional<SaveResult> result;
  if (phase_ == Phase::kShards) result = EndShards();
  if (!result.has_value()) result = EndCommit();
  result->stalled_seconds = stalled_seconds_ + SecondsSince(begin);
  return *std::move(result);
}

std::optional<SaveResult> Checkpointer::EndShards() {
  absl::Status status = comm::AgreeOnStatus(world_, writer_.Take());
  if (!status.ok()) return EndSave(status);
  const std::vector<std::string> texts = comm::AllGatherStrings(world_, WrittenText(written_));
  phase_ = Phase::kCommit;
  if (!IsRankZero()) return std::nullopt;
  auto job = std::make_shared<CommitJob>();
  job->checkpoints = options_.folder;
  job->temp = temp_;
  job->manifest = manifest_;
  job->recipe = options_.recipe;
  job->expected = parameters_;
  job->tensors_each = snapshot_->tensors_each();
  job->before_manifest = options_.before_manifest;
  for (const std::string& text : texts) {
    std::vector<WrittenShard> shards = ValueOrThrow(ParseWritten(text));
    std::move(shards.begin(), shards.end(), std::back_inserter(job->shards));
  }
  // By value: the main thread may change them while the writer runs.
  const std::set<std::string> spared = {StepFolderName(best_step_), resumed_name_};
  writer_.Start([this, job, spared] { return Commit(*job, spared); });
  return std::nullopt;
}

absl::Status Checkpointer::Commit(const CommitJob& job, std::set<std::string> spared) {
  GRAFT_ASSIGN_OR_RETURN(committed_bytes_, CommitCheckpoint(job));
  // What the run came from stays until two newer ones are there.
  if (++commits_ >= 2) spared.erase(resumed_name_);
  // It is committed: what follows may only warn.
  for (const absl::Status& status :
       {starts_->Committed(job.manifest.step),
        RemoveOldCheckpoints(options_.folder, options_.keep, spared)}) {
    if (!status.ok()) LOG(WARNING) << "after a checkpoint: " << status.message();
  }
  return absl::OkStatus();
}

SaveResult Checkpointer::EndCommit() {
  return EndSave(comm::AgreeOnStatus(world_, IsRankZero() ? writer_.Take() : absl::OkStatus()));
}

SaveResult Checkpointer::EndSave(const absl::Status& status) {
  phase_ = Phase::kIdle;
  SaveResult result;
  result.status = AsIo(status);
  result.step = manifest_.step;
  result.name = StepFolderName(manifest_.step);
  result.bytes = committed_bytes_;
  result.seconds = SecondsSince(began_);
  if (!status.ok() && IsRankZero()) {
    const absl::Status removed = RemoveTree(Path(temp_));
    if (!removed.ok()) LOG(WARNING) << "after a failed save: " << removed.message();
  }
  return result;
}

}  // namespace graft::sharding
