#include <utility>

#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "base/signals.h"
#include "base/status.h"
#include "comm/agree.h"
#include "trainer/fingerprint.h"
#include "trainer/trainer.h"

namespace graft::trainer {
namespace {

constexpr int kMaxFailedSaves = 3;  // in a row

}  // namespace

sharding::TrainedState Trainer::TrainedTensors() {
  return {.set = &model_->adapters(),
          .exp_avg = optimizer_->exp_avg(),
          .exp_avg_sq = optimizer_->exp_avg_sq()};
}

absl::Status Trainer::OpenCheckpoints() {
  RunInputs inputs;
  inputs.data = train_data_->fingerprint();
  inputs.tokenizer = train_data_->info().tokenizer_sha256.value_or("");
  inputs.total_steps = total_steps();
  absl::Status status;
  if (IsRankZero()) {  // which is where checkpoints are compared
    absl::StatusOr<std::string> fingerprint = ModelFingerprint(recipe_);
    status = fingerprint.status();
    if (status.ok()) inputs.model = *std::move(fingerprint);
  }
  GRAFT_RETURN_IF_ERROR(Agree(status));
  sharding::CheckpointOptions options;
  options.folder = JoinPath(recipe_.run.output, "checkpoints");
  options.keep = recipe_.checkpoint.keep;
  options.num_layers = static_cast<int>(model_->config().num_layers);
  options.recipe = RecipeYaml(recipe_);
  options.fixed = FixedTexts(recipe_, inputs);
  options.layout = LayoutTexts(recipe_, model_->threads());
  GRAFT_ASSIGN_OR_RETURN(
      checkpoints_, sharding::Checkpointer::Open(world_.all(), model_->grid(), std::move(options)));
  return absl::OkStatus();
}

absl::Status Trainer::Restore() {
  GRAFT_RETURN_IF_ERROR(OpenCheckpoints());
  GRAFT_ASSIGN_OR_RETURN(const auto resumed,
                         checkpoints_->Resume(recipe_.checkpoint.resume, TrainedTensors()));
  if (!resumed.has_value()) return absl::OkStatus();
  state_.step = resumed->progress.step;
  state_.updates = resumed->progress.updates;
  state_.skipped = resumed->progress.skipped;
  GRAFT_RETURN_IF_ERROR(ReadStateTexts(resumed->progress.state, resumed->path, &state_));
  optimizer_->set_updates(state_.updates);
  resumed_from_ = Basename(resumed->path);
  if (FolderOf(resumed->path) == JoinPath(recipe_.run.output, "checkpoints"))
    saved_step_ = state_.step;
  const bool has_best = PathExists(JoinPath(recipe_.run.output, kBestAdapterFolder));
  if (comm::BroadcastString(world_.all(), has_best ? "yes" : "no", 0) == "no") {
    state_.best_loss.reset();  // a checkpoint of another output: its best adapter is not here
    state_.best_step = 0;
  }
  if (IsRankZero()) LOG(INFO) << "resumed after step " << state_.step << " from " << resumed->path;
  return absl::OkStatus();
}

absl::Status Trainer::Save(SaveReason reason) {
  if (IsRankZero()) ThrowIfError(metrics_->Sync());
  const sharding::RunProgress progress = {.step = state_.step,
                                          .updates = state_.updates,
                                          .skipped = state_.skipped,
                                          .state = StateTexts(state_)};
  const absl::StatusOr<sharding::SavedCheckpoint> saved =
      checkpoints_->Save(progress, TrainedTensors());
  if (!saved.ok()) {
    ++failed_saves_;
    if (reason == SaveReason::kMust || failed_saves_ >= kMaxFailedSaves) return saved.status();
    if (IsRankZero())
      LOG(WARNING) << "step " << state_.step
                   << ": not saved, will try again: " << saved.status().message();
    return absl::OkStatus();
  }
  failed_saves_ = 0;
  saved_step_ = state_.step;
  if (IsRankZero())
    ThrowIfError(metrics_->Write(CheckpointRecord{state_.step, saved->seconds, saved->bytes}));
  return absl::OkStatus();
}

bool Trainer::AnyRankWantsToStop() const {
  comm::ControlVector mine;
  mine.stop_requests = StopRequested() ? 1 : 0;
  return comm::ReduceControl(world_.all(), mine).stop_requests > 0;
}

}  // namespace graft::trainer
