#include <ATen/Version.h>
#include <torch/version.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/hash.h"
#include "base/logging.h"
#include "base/signals.h"
#include "base/status.h"
#include "base/text.h"
#include "base/version.h"
#include "comm/agree.h"
#include "trainer/fingerprint.h"
#include "trainer/run_manifest.h"
#include "trainer/trainer.h"

namespace graft::trainer {
namespace {

constexpr int kMaxFailedSaves = 3;  // in a row

std::string LayoutText(const sharding::LayoutInfo& layout) {
  return absl::StrCat("data ", layout.data, " x pipeline ", layout.pipeline, ", ", layout.schedule,
                      ", micro-batch ", layout.micro_batch, ", ", layout.threads, " threads");
}

}  // namespace

sharding::TrainedState Trainer::TrainedTensors() {
  sharding::TrainedState state = {.set = &model_->adapters(),
                                  .exp_avg = optimizer_->exp_avg(),
                                  .exp_avg_sq = optimizer_->exp_avg_sq()};
  if (sensitivity_ != nullptr) {
    state.averages = {{"sensitivity", sensitivity_->sensitivity()},
                      {"uncertainty", sensitivity_->uncertainty()}};
  }
  return state;
}

// What is the same in every manifest of this start.
absl::StatusOr<sharding::Manifest> Trainer::DescribeRun() {
  sharding::Manifest manifest;
  RecipeToManifest(recipe_, total_steps(), &manifest);
  const models::ModelConfig& config = model_->config();
  manifest.base.model_type = config.model_type;
  manifest.base.num_layers = config.num_layers;
  manifest.base.hidden_size = config.hidden_size;
  manifest.base.vocab_size = config.vocab_size;
  const bool names_count = model_->data_rank() == 0;  // the other replicas load the same
  GRAFT_ASSIGN_OR_RETURN(
      manifest.base.fingerprint,
      ModelFingerprint(recipe_,
                       names_count ? model_->loaded_weights() : std::vector<WatchedTensor>(),
                       world_.all()));
  manifest.adapter.method = model_->method().name();
  std::vector<std::pair<std::string, std::string>> shapes;
  for (const adapters::ParameterSpec& spec : model_->method().Parameters(model_->matched())) {
    shapes.emplace_back(spec.name, absl::StrJoin(spec.shape, ","));
  }
  const adapters::PromptEncoderChoice* encoder = model_->method().prompt_encoder();
  manifest.adapter.config_sha256 =
      AdapterConfigSha256(recipe_, shapes, encoder == nullptr ? "" : encoder->facts.fingerprint);
  manifest.data.fingerprint = train_data_->fingerprint();
  manifest.data.tokenizer_sha256 = train_data_->info().tokenizer_sha256;
  manifest.data.num_samples = train_data_->size();
  const LayoutRecord record = Layout();
  sharding::LayoutInfo& layout = manifest.layout;
  layout.data = record.data;
  layout.pipeline = record.pipeline;
  layout.schedule = record.schedule;
  layout.micro_batch = record.micro_batch;
  layout.device = record.device;
  layout.backend = record.backend;
  layout.threads = record.threads;
  layout.cpu_isa = at::get_cpu_capability();
  layout.versions = {
      {"graft", Version()}, {"libtorch", TORCH_VERSION}, {"mpi", comm::MpiVersion()}};
  for (const sharding::StageChunk& part : model_->plan().parts) {
    layout.split.push_back(part.num_layers);
  }
  GRAFT_ASSIGN_OR_RETURN(const TextMap fixed, FixedRecipeTexts(RecipeYaml(recipe_)));
  manifest.recipe.resume_sha256 = ResumeSha256(fixed);
  return manifest;
}

void Trainer::DescribePosition(sharding::Manifest* manifest) {
  const BatchPlan::Position position = batches_->After(state_.step);
  manifest->data.epoch = position.epoch;
  manifest->data.cursor = position.cursor;
  if (recipe_.data.packing) manifest->data.plan_sha256 = batches_->EpochSha256(position.epoch);
}

absl::Status Trainer::OpenCheckpoints() {
  const absl::StatusOr<sharding::Manifest> described = DescribeRun();
  GRAFT_RETURN_IF_ERROR(Agree(described.status()));
  manifest_ = *described;
  sharding::CheckpointOptions options;
  options.folder = JoinPath(recipe_.run.output, "checkpoints");
  options.keep = recipe_.checkpoint.keep;
  options.num_layers = static_cast<int>(model_->config().num_layers);
  options.recipe = RecipeYaml(recipe_);
  GRAFT_ASSIGN_OR_RETURN(options.fixed, FixedTexts(manifest_, options.recipe));
  options.fixed_of = &FixedTexts;
  options.before_manifest = [this] { return metrics_->Sync(); };
  GRAFT_ASSIGN_OR_RETURN(
      checkpoints_, sharding::Checkpointer::Open(world_.all(), model_->grid(), std::move(options),
                                                 TrainedTensors()));
  return absl::OkStatus();
}

absl::Status Trainer::Restore() {
  GRAFT_RETURN_IF_ERROR(OpenCheckpoints());
  GRAFT_ASSIGN_OR_RETURN(const auto resumed,
                         checkpoints_->Resume(recipe_.checkpoint.resume, TrainedTensors()));
  if (!resumed.has_value()) return absl::OkStatus();
  model_->SpreadSharedWeights();
  const sharding::Manifest& saved = resumed->manifest;
  state_ = StateFromManifest(saved);
  optimizer_->set_updates(state_.updates);
  resumed_from_ = Basename(resumed->path);
  if (FolderOf(resumed->path) == JoinPath(recipe_.run.output, "checkpoints"))
    saved_step_ = state_.step;
  const bool has_best = PathExists(BestFolder());
  if (comm::BroadcastString(world_.all(), has_best ? "yes" : "no", 0) == "no") {
    state_.best_loss.reset();  // a checkpoint of another output: its best adapter is not here
    state_.best_step = 0;
  }
  checkpoints_->SpareBest(state_.best_step);
  DescribePosition(&manifest_);
  if (saved.data.epoch != manifest_.data.epoch || saved.data.cursor != manifest_.data.cursor ||
      saved.data.plan_sha256 != manifest_.data.plan_sha256) {
    return IoError(absl::StrCat(resumed->path, ": cannot resume: after step ", state_.step,
                                " the data stand at epoch ", saved.data.epoch, ", row ",
                                saved.data.cursor, " in the checkpoint and at epoch ",
                                manifest_.data.epoch, ", row ", manifest_.data.cursor, " now"));
  }
  if (IsRankZero()) {
    LOG(INFO) << "resumed after step " << state_.step << " from " << resumed->path << " ("
              << LayoutText(saved.layout) << "; now " << LayoutText(manifest_.layout)
              << "), adapter hash64 " << Hex64(saved.adapter.hash64);
  }
  return absl::OkStatus();
}

absl::Status Trainer::Save(SaveReason reason) {
  // At most one save is in flight: a due one waits, one that ends the run too.
  GRAFT_RETURN_IF_ERROR(FinishSave(reason));
  if (saved_step_ == state_.step) return absl::OkStatus();
  sharding::Manifest manifest = manifest_;
  StateToManifest(state_, recipe_.eval.metric, &manifest);
  DescribePosition(&manifest);
  const absl::Status started = checkpoints_->StartSave(std::move(manifest), TrainedTensors());
  if (!started.ok()) {
    sharding::SaveResult failed;
    failed.status = started;
    return BookSave(failed, reason);
  }
  if (reason == SaveReason::kDue && recipe_.checkpoint.async) return absl::OkStatus();
  return FinishSave(reason);
}

absl::Status Trainer::AdvanceSave() {
  const std::optional<sharding::SaveResult> result = checkpoints_->Advance(save_votes_);
  return result.has_value() ? BookSave(*result, SaveReason::kDue) : absl::OkStatus();
}

absl::Status Trainer::FinishSave(SaveReason reason) {
  return checkpoints_->saving() ? BookSave(checkpoints_->Wait(), reason) : absl::OkStatus();
}

absl::Status Trainer::BookSave(const sharding::SaveResult& result, SaveReason reason) {
  if (!result.status.ok()) {
    ++failed_saves_;
    const bool retry = reason == SaveReason::kDue && failed_saves_ < kMaxFailedSaves &&
                       KindOf(result.status) == ErrorKind::kIo;
    if (!retry) return result.status;
    if (IsRankZero()) {
      LOG(WARNING) << "step " << result.step << " was not saved, will try again at the next due "
                   << "step: " << result.status.message();
    }
    return absl::OkStatus();
  }
  failed_saves_ = 0;
  saved_step_ = result.step;
  WarnOfShortLead(lead_watch_.AddSave(result.seconds));
  if (!IsRankZero()) return absl::OkStatus();
  LOG(INFO) << "checkpoint " << result.name << ": " << FormatBytes(result.bytes) << " in "
            << result.seconds << " s, training stood still for " << result.stalled_seconds << " s";
  ThrowIfError(metrics_->Write(CheckpointRecord{.step = result.step,
                                                .seconds = result.seconds,
                                                .bytes = result.bytes,
                                                .stall_seconds = result.stalled_seconds}));
  return absl::OkStatus();
}

void Trainer::NoteOrderlyEnd() {
  if (!IsRankZero()) return;
  const absl::Status noted = checkpoints_->NoteOrderlyEnd();
  if (!noted.ok()) LOG(WARNING) << "log of starts: " << noted.message();
}

bool Trainer::AnyRankWantsToStop() const {
  comm::ControlVector mine;
  mine.stop_requests = StopRequested() ? 1 : 0;
  return comm::ReduceControl(world_.all(), mine).stop_requests > 0;
}

absl::Status Trainer::StopWhileBuilding() const {
  if (!AnyRankWantsToStop()) return absl::OkStatus();
  return MakeError(ErrorKind::kStopped,
                   "on request while the run was set up; nothing was lost, run again to go on");
}

}  // namespace graft::trainer
