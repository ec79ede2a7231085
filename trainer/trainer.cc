#include "trainer/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/logging.h"
#include "base/signals.h"
#include "base/status.h"
#include "comm/agree.h"
#include "sharding/adapter_folder.h"
#include "trainer/data/collate.h"
#include "trainer/device.h"
#include "trainer/memory.h"
#include "trainer/scoring/sensitivity_file.h"
#include "trainer/stopwatch.h"

namespace graft::trainer {
namespace {

constexpr int64_t kReplicaCheckSteps = 100;

}  // namespace

// The step on one page. Gradients are summed over all trained tokens of the global batch, then
// divided once.
TrainRecord Trainer::TrainStep() {
  const Stopwatch clock;
  adapters::AdapterSet& adapters = model_->adapters();
  TrainRecord record;
  record.step = state_.step + 1;
  BeginPhase(comm::Phase::kStep, record.step);
  if (trace_ != nullptr) trace_->BeginStep(record.step);
  record.lr = schedule_.Rate(state_.step);

  // 1. Micro-batches of this data rank through the pipeline: gradients of the sum of all
  // cross-entropies. Those of layers that are done go on to step 2 at once.
  adapters.ZeroGradients();
  const std::vector<models::MicroBatch> micro_batches = CollateStep();
  const int64_t received = ReceivedWeightBytes();
  const sharding::StepResult result = model_->executor().TrainStep(
      micro_batches, [this](int layer) { reduction_->LayersDone(layer); });
  record.received_weight_bytes = ReceivedWeightBytes() - received;
  model_->CollectSharedGradients();

  // 2. The gradients summed over the ranks that hold the same stage; then one small vector over all
  // ranks, which every decision below is taken from.
  const Stopwatch reduce_clock;
  reduction_->Finish();
  std::vector<comm::ControlVector> by_rank;
  const comm::ControlVector total =
      comm::ReduceControl(world_.all(), MeasureStep(result, reduce_clock.Seconds()), &by_rank);
  stop_requested_ = total.stop_requests > 0;
  broken_ = total.error_code > 0;
  save_votes_ = {.done = total.saves_done, .failed = total.saves_failed};

  // 3. Divide and clip in one pass, then update. A step that is not finite is consumed without an
  // update, on all ranks alike.
  const double tokens = std::max(1.0, total.trained_tokens);
  record.loss = total.loss_sum / tokens;
  record.grad_norm = std::sqrt(total.gradient_square_sum) / tokens;
  record.skipped = total.non_finite > 0;
  if (!record.skipped) {
    const StepTrace::Scope scope(trace_.get(), "optimizer", "compute");
    WatchGradients(record.lr);
    if (sensitivity_ != nullptr)
      sensitivity_->Update(adapters.values(), adapters.gradients(), tokens);
    const double clip = ClipCoefficient(record.grad_norm, recipe_.optim.clip_norm);
    adapters.gradients().mul_(clip / tokens);
    optimizer_->Step(adapters.values(), adapters.gradients(), record.lr);
    model_->SpreadSharedWeights();
  }
  state_.CountStep(record.skipped);

  // 4. What the step was.
  record.samples = static_cast<int64_t>(total.samples);
  record.tokens = static_cast<int64_t>(total.tokens);
  record.trained_tokens = static_cast<int64_t>(total.trained_tokens);
  record.peak_memory_bytes = static_cast<int64_t>(total.peak_memory_bytes);
  record.stage_peak_memory_bytes = PeakMemoryOfStages(by_rank);
  record.communication_seconds = total.communication_seconds;
  record.step_seconds = clock.Seconds();
  record.tokens_per_second = total.tokens / record.step_seconds;
  record.model_flops_per_second = total.model_flop / record.step_seconds;
  record.hardware_flops_per_second = total.hardware_flop / record.step_seconds;
  record.peak_flops = recipe_.log.peak_flops * world_.size();
  record.bubble_fraction =
      std::max(0.0, 1.0 - total.compute_seconds / (world_.size() * record.step_seconds));
  WatchHealth(record, by_rank);
  if (trace_ != nullptr) trace_->EndStep(result);
  return record;
}

int64_t Trainer::ReceivedWeightBytes() const {
  return model_->shards() != nullptr ? model_->shards()->received_bytes() : 0;
}

std::vector<models::MicroBatch> Trainer::CollateStep() {
  const StepTrace::Scope scope(trace_.get(), "collate", "data");
  std::vector<models::MicroBatch> micro_batches =
      batch_ahead_.Take(state_.step, CollationOf(state_.step));
  // On a CPU a thread beside the step's would take a core from it.
  const int64_t next = state_.step + 1;
  if (!model_->device().is_cpu() && next < total_steps())
    batch_ahead_.Start(next, CollationOf(next));
  return micro_batches;
}

BatchAhead::Collation Trainer::CollationOf(int64_t step) {
  return [this, step, all = batches_->MicroBatches(step, model_->data_rank())] {
    std::vector<models::MicroBatch> micro_batches;
    for (const std::vector<int64_t>& samples : all) {
      micro_batches.push_back(
          Collate(*train_data_, samples, step + 1, static_cast<int64_t>(micro_batches.size()),
                  model_->method().virtual_rows(), model_->config().decoder_start_token_id));
    }
    return micro_batches;
  };
}

comm::ControlVector Trainer::MeasureStep(const sharding::StepResult& result,
                                         double reduce_seconds) {
  const StepTrace::Scope scope(trace_.get(), "measure", "compute");
  comm::ControlVector mine;
  if (model_->is_last_stage()) {
    mine.loss_sum = result.loss_sum;
    for (const std::vector<int64_t>& samples :
         batches_->MicroBatches(state_.step, model_->data_rank())) {
      mine.samples += static_cast<double>(samples.size());
      mine.tokens += static_cast<double>(CountTokens(*train_data_, samples));
      mine.trained_tokens += static_cast<double>(CountTrainedTokens(*train_data_, samples));
      const FlopCount flop = flop_->Of(*train_data_, samples);
      mine.model_flop += flop.model;
      mine.hardware_flop += flop.hardware;
    }
    mine.non_finite += std::isfinite(result.loss_sum) ? 0 : 1;
  }
  // The replicas hold equal sums after the reduction: one of them counts.
  if (model_->data_rank() == 0) {
    mine.gradient_square_sum = SumOfSquares(model_->adapters().gradients());
    mine.non_finite += std::isfinite(mine.gradient_square_sum) ? 0 : 1;
  }
  mine.stop_requests = StopRequested() ? 1 : 0;
  frozen_status_ = frozen_->CheckSome(std::exchange(frozen_clock_, Stopwatch()).Seconds());
  mine.error_code = ExitCodeOf(frozen_status_);
  const sharding::Checkpointer::Vote vote = checkpoints_->CastVote();
  mine.saves_done = vote.done;
  mine.saves_failed = vote.failed;
  mine.compute_seconds = result.compute_seconds;
  mine.communication_seconds = result.blocked_seconds + reduce_seconds;
  const torch::Device device = model_->device();
  mine.peak_memory_bytes =
      static_cast<double>(device.is_cpu() ? PeakResidentBytes() : PeakDeviceBytes(device));
  return mine;
}

absl::Status Trainer::Run() {
  if (state_.ended_early || state_.step >= total_steps()) {
    if (IsRankZero())
      LOG(INFO) << recipe_.run.output << ": the run is finished at step " << state_.step
                << "; nothing to do";
    NoteOrderlyEnd();
    return absl::OkStatus();
  }
  if (AnyRankWantsToStop()) {
    return MakeError(ErrorKind::kStopped, absl::StrCat("on request before step ", state_.step + 1,
                                                       "; nothing was lost"));
  }
  bool stop = false;
  step_clock_ = Stopwatch();
  while (!stop && !state_.ended_early && state_.step < total_steps()) {
    const TrainRecord record = TrainStep();
    const absl::Status status = AfterStep(record, &stop);
    if (status.ok()) continue;
    // The state that is being saved is from before the trouble, unless something is broken.
    if (KindOf(status) == ErrorKind::kBug) return status;
    const absl::Status saved = FinishSave(SaveReason::kMust);
    if (!saved.ok() && IsRankZero()) LOG(WARNING) << "the last save: " << saved.message();
    return status;
  }
  if (progress_ != nullptr) progress_->Finish();
  if (const sharding::MicroBatchGraphs* graphs = model_->executor().graphs();
      graphs != nullptr && IsRankZero())
    LOG(INFO) << graphs->Summary();
  if (state_.ended_early || state_.step >= total_steps()) return Finish();
  BeginPhase(comm::Phase::kSave, state_.step);
  GRAFT_RETURN_IF_ERROR(Save(SaveReason::kMust));
  NoteOrderlyEnd();
  return MakeError(ErrorKind::kStopped,
                   absl::StrCat("on request after step ", state_.step, " of ", total_steps(),
                                "; state saved in ", recipe_.run.output, ", run again to go on"));
}

absl::Status Trainer::AfterStep(const TrainRecord& record, bool* stop) {
  if (IsRankZero()) {
    progress_->Show(record);
    ThrowIfError(metrics_->Write(record));
  }
  // No save with weights that have changed, neither a new one nor the rest of one under way.
  if (broken_) return Agree(frozen_status_);
  GRAFT_RETURN_IF_ERROR(AdvanceSave());
  GRAFT_RETURN_IF_ERROR(CountNonFinite(record));
  if (state_.step % kReplicaCheckSteps == 0)
    GRAFT_RETURN_IF_ERROR(checkpoints_->CheckReplicas(TrainedTensors()));
  const bool last = state_.step >= total_steps();
  const int64_t eval_every = recipe_.eval.every;
  if (eval_every > 0 && (last || state_.step % eval_every == 0))
    GRAFT_RETURN_IF_ERROR(EvaluateAndKeepBest());
  const int64_t save_every = recipe_.checkpoint.every;
  const bool ends = last || state_.ended_early;  // Finish saves
  if (!ends && save_every > 0 && state_.step % save_every == 0) {
    BeginPhase(comm::Phase::kSave, state_.step);
    GRAFT_RETURN_IF_ERROR(Save(SaveReason::kDue));
  }
  *stop = stop_requested_;
  if (trace_ != nullptr && (trace_->full() || ends || *stop)) WriteTrace();
  return absl::OkStatus();
}

void Trainer::WriteTrace() {
  BeginPhase(comm::Phase::kSave, state_.step);
  if (trace_->empty()) {
    if (IsRankZero()) LOG(WARNING) << "log.trace: the run ended before its second step";
  } else if (const absl::Status status = trace_->Write(JoinPath(recipe_.run.output, "trace"));
             !status.ok()) {
    LOG(WARNING) << "log.trace: " << status.message();  // no reason to end a run
  }
  trace_.reset();
}

absl::Status Trainer::CountNonFinite(const TrainRecord& record) {
  if (!record.skipped) return absl::OkStatus();
  if (IsRankZero()) {
    LOG(WARNING) << "step " << record.step << ": loss " << record.loss << ", gradient norm "
                 << record.grad_norm << ": not finite, no update (" << state_.consecutive_skips
                 << " in a row, " << state_.skipped << " in all)";
  }
  if (!state_.TooManySkips()) return absl::OkStatus();
  return NumericError(
      absl::StrCat("step ", record.step, ": loss or gradient not finite in ",
                   state_.consecutive_skips, " steps in a row and ", state_.recent_skips.size(),
                   " of the last 1,000, allowed 5 and 10; lower optim.lr or look at the data"));
}

absl::Status Trainer::EvaluateAndKeepBest() {
  BeginPhase(comm::Phase::kEvaluate, state_.step);
  const EvalResult result =
      Evaluate(*model_, *eval_data_, eval_data_->size(), recipe_.optim.micro_batch);
  const double value = result.Value(recipe_.eval.metric);
  const bool best = state_.CountEvaluation(higher_is_better_ ? -value : value);
  if (best) checkpoints_->SpareBest(state_.step);
  const int64_t patience = recipe_.eval.patience;
  state_.ended_early = patience > 0 && state_.evaluations_since_best >= patience;
  absl::Status status;
  if (IsRankZero()) {
    progress_->Finish();
    LOG(INFO) << "step " << state_.step << ": eval loss " << result.loss
              << (recipe_.eval.metric == "loss"
                      ? std::string()
                      : absl::StrCat(", ", recipe_.eval.metric, " ", value))
              << (best ? " (best so far)" : "");
    if (state_.ended_early)
      LOG(INFO) << "no better evaluation in " << patience
                << " of them: the run ends here, the best is step " << state_.best_step;
    status = metrics_->Write(EvalRecord{state_.step, result.loss, result.metrics});
  }
  if (best && model_->data_rank() == 0) {
    const absl::Status saved = model_->WriteTrained(BestFolder(), train_data_->info().labels);
    if (status.ok()) status = saved;
  }
  return Agree(status);
}

absl::Status Trainer::Finish() {
  BeginPhase(comm::Phase::kSave, state_.step);
  GRAFT_RETURN_IF_ERROR(Agree(frozen_->CheckAll()));
  const std::string final_folder = FinalFolder();
  absl::Status status;
  if (state_.best_step > 0) {
    if (IsRankZero()) status = BestBecomesFinal();
  } else if (model_->data_rank() == 0) {
    status = model_->WriteTrained(final_folder, train_data_->info().labels);
  }
  GRAFT_RETURN_IF_ERROR(Agree(status));
  if (sensitivity_ != nullptr) {
    const bool writes = model_->data_rank() == 0;
    GRAFT_RETURN_IF_ERROR(Agree(writes ? WriteSensitivity(final_folder) : absl::OkStatus()));
  }
  // The last checkpoint says that the run is finished, so the adapter must be there before it.
  GRAFT_RETURN_IF_ERROR(Save(SaveReason::kMust));
  NoteOrderlyEnd();
  if (IsRankZero())
    LOG(INFO) << "finished at step " << state_.step << "; " << Basename(final_folder) << " in "
              << final_folder;
  return absl::OkStatus();
}

std::string Trainer::FinalFolder() const {
  return JoinPath(recipe_.run.output,
                  model_->method().trains_backbone() ? kModelFolder : kAdapterFolder);
}

std::string Trainer::BestFolder() const { return FinalFolder() + kBestSuffix; }

absl::Status Trainer::BestBecomesFinal() const {
  if (model_->method().trains_backbone()) return CopyFolder(BestFolder(), FinalFolder());
  GRAFT_ASSIGN_OR_RETURN(const sharding::AdapterFolder best,
                         sharding::ReadAdapterFolder(BestFolder()));
  return sharding::WriteAdapterFolder(FinalFolder(), best.config, best.tensors);
}

absl::Status Trainer::WriteSensitivity(const std::string& adapter_folder) {
  const torch::Tensor q = sensitivity_->sensitivity() * sensitivity_->uncertainty();
  const sharding::NamedTensors all =
      sharding::GatherValues(*model_->groups().pipeline_group, model_->adapters(), q);
  if (!IsRankZero()) return absl::OkStatus();
  Sensitivity file;
  GRAFT_ASSIGN_OR_RETURN(file.modules, SensitivityScores(model_->method(), model_->matched(), all));
  GRAFT_ASSIGN_OR_RETURN(file.adapter_sha256,
                         Sha256File(JoinPath(adapter_folder, "adapter_model.safetensors")));
  return AtomicWriteFile(SensitivityPath(adapter_folder), SensitivityText(file));
}

absl::Status Trainer::Agree(const absl::Status& mine) const {
  return comm::AgreeOnStatus(world_.all(), mine);
}

void Trainer::BeginPhase(comm::Phase phase, int64_t step) {
  world_.heartbeat().Enter(phase, step);
  world_.recorder().set_step(step);
}

std::string Trainer::Where() const {
  if (model_ == nullptr) return "while the run was built";
  return absl::StrCat("data rank ", model_->data_rank(), ", stage ", model_->stage_index(),
                      ", step ", state_.step + 1);
}

}  // namespace graft::trainer
