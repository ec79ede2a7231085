#include <torch/version.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "base/signals.h"
#include "base/status.h"
#include "base/text.h"
#include "base/version.h"
#include "comm/agree.h"
#include "sharding/buffer.h"
#include "sharding/step_plan.h"
#include "trainer/device.h"
#include "trainer/fingerprint.h"
#include "trainer/memory.h"
#include "trainer/open_data.h"
#include "trainer/plan_check.h"
#include "trainer/summary.h"
#include "trainer/task_metrics.h"
#include "trainer/trainer.h"

namespace graft::trainer {

namespace {

// Method `none` trains the task head alone.
absl::Status CheckHeadAlone(const Recipe& recipe) {
  if (recipe.task.type != "classification" && recipe.task.type != "regression") {
    return RecipeError(absl::StrCat("adapter.method: found none, task ", recipe.task.type,
                                    " has no head to train; allowed: a method with parameters"));
  }
  if (recipe.adapter.head_train) return absl::OkStatus();
  return RecipeError("adapter.head.train: found false, method none trains nothing else");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Build(const Recipe& recipe, comm::World& world) {
  std::unique_ptr<Trainer> trainer(new Trainer(recipe, world));
  trainer->program_bytes_ = ProgramBytes();
  using Step = absl::Status (Trainer::*)();
  for (const Step step : {&Trainer::OpenOutput, &Trainer::OpenDataSets, &Trainer::PlanBatches,
                          &Trainer::LoadModel, &Trainer::Restore, &Trainer::OpenMetrics}) {
    trainer->BeginPhase(comm::Phase::kSetup, -1);
    GRAFT_RETURN_IF_ERROR((trainer.get()->*step)());
    GRAFT_RETURN_IF_ERROR(trainer->StopWhileBuilding());
  }
  trainer->ShowStart();
  return trainer;
}

absl::Status Trainer::OpenOutput() {
  absl::Status status = CheckSupported(recipe_);
  if (status.ok() && recipe_.eval.every > 0 && recipe_.data.eval.empty()) {
    status = RecipeError("data.eval: absent, eval.every above 0 needs it");
  }
  const std::string& method = recipe_.adapter.method;
  if (status.ok() && recipe_.adapter.track_sensitivity && method != "lora" && method != "fanlora") {
    status = RecipeError(absl::StrCat("adapter.track_sensitivity: found true with method ", method,
                                      ", allowed: lora, fanlora"));
  }
  if (status.ok() && method == "full" && recipe_.model.path.empty()) {
    status = RecipeError(
        "model.path: absent, method full writes a model folder beside the files of that one");
  }
  if (status.ok() && method == "none") status = CheckHeadAlone(recipe_);
  if (status.ok()) status = ChooseMetric();
  if (status.ok() && IsRankZero()) {
    status = MakeDirs(recipe_.run.output);
    if (status.ok()) {
      auto lock = FileLock::Acquire(JoinPath(recipe_.run.output, "lock"), absl::Seconds(10));
      if (lock.ok()) lock_ = *std::move(lock);
      status = lock.status();
    }
  }
  return Agree(status);
}

absl::Status Trainer::ChooseMetric() {
  std::vector<std::string> names;
  for (const MetricName& metric : MetricsOfTask(recipe_.task.type)) {
    names.push_back(metric.name);
    if (metric.name != recipe_.eval.metric) continue;
    higher_is_better_ = metric.higher_is_better;
    return absl::OkStatus();
  }
  return RecipeError(absl::StrCat("eval.metric: found \"", Printable(recipe_.eval.metric),
                                  "\", allowed for task ", recipe_.task.type, ": ",
                                  JoinNames(names)));
}

absl::Status Trainer::OpenDataSets() {
  GRAFT_ASSIGN_OR_RETURN(train_data_,
                         OpenData(recipe_, recipe_.data.train, "data.train", world_.all()));
  if (recipe_.eval.every > 0) {
    GRAFT_ASSIGN_OR_RETURN(eval_data_,
                           OpenData(recipe_, recipe_.data.eval, "data.eval", world_.all()));
  }
  return absl::OkStatus();
}

absl::Status Trainer::PlanBatches() {
  BatchPlanOptions options;
  options.num_samples = train_data_->size();
  options.max_samples = recipe_.data.max_samples;
  options.shuffle = recipe_.data.shuffle;
  options.seed = static_cast<uint64_t>(recipe_.run.seed);
  options.steps = recipe_.optim.steps;
  options.epochs = recipe_.optim.epochs;
  options.global_batch = recipe_.optim.global_batch;
  options.micro_batch = recipe_.optim.micro_batch;
  options.data_ranks = recipe_.parallel.data;
  if (recipe_.data.packing) {
    options.row_length =
        recipe_.data.row_length > 0 ? recipe_.data.row_length : train_data_->info().max_length;
    for (int64_t i = 0; i < train_data_->size(); ++i)
      options.lengths.push_back(train_data_->length(i));
  }
  absl::StatusOr<BatchPlan> batches = BatchPlan::Create(std::move(options));
  GRAFT_RETURN_IF_ERROR(Agree(batches.status()));
  batches_ = std::make_unique<BatchPlan>(*std::move(batches));
  absl::StatusOr<LrDecay> decay = ParseLrDecay(recipe_.optim.schedule);
  GRAFT_RETURN_IF_ERROR(Agree(decay.status()));
  schedule_ = {.decay = *decay,
               .peak = recipe_.optim.lr,
               .warmup_steps = recipe_.optim.warmup_steps,
               .total_steps = batches_->num_steps()};
  return absl::OkStatus();
}

absl::Status Trainer::LoadModel() {
  const int64_t row_length =
      recipe_.data.packing ? std::max(recipe_.data.row_length, train_data_->info().max_length) : 0;
  const WorkShape shape = WorkShapeOf(*train_data_, row_length);
  GRAFT_ASSIGN_OR_RETURN(
      model_, LoadedModel::Load(recipe_, world_, shape, LoadedModel::Purpose::kTraining));
  absl::Status status = CheckFitsModel(*train_data_, *model_, "data.train");
  if (status.ok() && eval_data_ != nullptr)
    status = CheckFitsModel(*eval_data_, *model_, "data.eval");
  if (status.ok() && eval_data_ != nullptr)
    status = CheckOutputs(*eval_data_, *model_, "data.eval");
  GRAFT_RETURN_IF_ERROR(Agree(status));
  const OptimSection& optim = recipe_.optim;
  optimizer_ = std::make_unique<AdamW>(model_->adapters().values(),
                                       AdamWOptions{.beta1 = optim.betas[0],
                                                    .beta2 = optim.betas[1],
                                                    .eps = optim.eps,
                                                    .weight_decay = optim.weight_decay});
  if (recipe_.adapter.track_sensitivity)
    sensitivity_ = std::make_unique<SensitivityTracker>(model_->adapters().values());
  comm::Groups& groups = model_->groups();
  reduction_ = std::make_unique<sharding::GradientReduction>(
      model_->adapters(), static_cast<int>(model_->config().num_layers),
      groups.device_data_group ? *groups.device_data_group : *groups.data_group,
      model_->late_gradients());
  reduction_->Connect();
  std::vector<WatchedTensor> frozen = model_->loaded_weights();
  frozen.insert(frozen.end(), model_->encoder_weights().begin(), model_->encoder_weights().end());
  frozen_ = std::make_unique<FrozenWatch>(std::move(frozen), model_->derived_weights());
  GRAFT_RETURN_IF_ERROR(Agree(frozen_->arrival()));
  gradient_watch_ = std::make_unique<GradientWatch>(model_->adapters().parameters().size());
  flop_ = std::make_unique<SampleFlop>(recipe_, *model_);
  if (recipe_.log.trace > 0) {
    trace_ = std::make_unique<StepTrace>(
        world_, absl::StrCat("data ", model_->data_rank(), ", stage ", model_->stage_index()),
        recipe_.log.trace);
  }
  GRAFT_RETURN_IF_ERROR(Agree(PredictMemory(shape)));
  GRAFT_RETURN_IF_ERROR(Agree(ReserveMemory()));
  return CheckStepPlan();
}

absl::Status Trainer::PredictMemory(const WorkShape& shape) {
  const bool on_gpu = !model_->device().is_cpu();
  GRAFT_ASSIGN_OR_RETURN(sharding::PlanWork work,
                         PlanWorkOf(recipe_, model_->adapter_choice(), shape, on_gpu));
  if (!on_gpu) work.shape.base_bytes = static_cast<double>(program_bytes_);
  GRAFT_ASSIGN_OR_RETURN(const sharding::PlanEstimate estimate,
                         sharding::EstimatePlan(model_->config(), model_->plan(), work));
  for (const sharding::StageEstimate& stage : estimate.stages)
    predicted_memory_.push_back(static_cast<int64_t>(stage.memory.total()));
  return absl::OkStatus();
}

absl::Status Trainer::ReserveMemory() {
  const torch::Device device = model_->device();
  if (device.is_cpu()) return absl::OkStatus();
  const DeviceMemory now = DeviceMemoryOf(device);
  const int64_t predicted = predicted_memory_[static_cast<size_t>(model_->stage_index())];
  const absl::Status fits = CheckFits(predicted, now);
  if (recipe_.parallel.reserve_memory) {
    GRAFT_RETURN_IF_ERROR(fits);
    return ReserveDeviceBytes(device, predicted - now.held);
  }
  if (!fits.ok()) LOG(WARNING) << fits.message();
  return absl::OkStatus();
}

absl::Status Trainer::CheckStepPlan() {
  GRAFT_ASSIGN_OR_RETURN(const sharding::ScheduleKind schedule,
                         sharding::ParseSchedule(recipe_.parallel.schedule));
  const auto step = sharding::CompileStep(
      model_->plan(), {.schedule = schedule,
                       .data_ranks = static_cast<int>(recipe_.parallel.data),
                       .micro_batches = static_cast<int>(batches_->micro_batches_per_step()),
                       .shard_weights = recipe_.parallel.shard_weights});
  GRAFT_RETURN_IF_ERROR(Agree(step.status()));
  const std::string numbers =
      absl::StrCat("steps ", total_steps(), ", global batch ", recipe_.optim.global_batch,
                   ", samples ", train_data_->size(), ", checkpoint.every ",
                   recipe_.checkpoint.every, ", eval.every ", recipe_.eval.every, "\n");
  return CheckSameOnAllRanks(world_.all(), "the plan of a step", numbers + *step);
}

LayoutRecord Trainer::Layout() const {
  const ParallelSection& parallel = recipe_.parallel;
  return {.data = static_cast<int>(parallel.data),
          .pipeline = static_cast<int>(parallel.pipeline),
          .schedule = parallel.schedule,
          .device = model_->device().is_cpu() ? "cpu" : "cuda",
          .backend = model_->groups().device_data_group || model_->groups().device_pipeline_group
                         ? "nccl"
                         : world_.all().backend(),
          .threads = model_->threads(),
          .micro_batch = recipe_.optim.micro_batch};
}

namespace {

// Layers and frozen bytes of every part, on all ranks of the pipeline. Those of data rank 0.
std::vector<StageRecord> StagesOf(LoadedModel& model) {
  const sharding::Plan& plan = model.plan();
  const auto chunks = static_cast<size_t>(plan.chunks), stages = static_cast<size_t>(plan.stages);
  const size_t width = chunks + 1;  // and what is gathered
  std::vector<int64_t> mine, all(width * stages);
  for (int chunk = 0; chunk < plan.chunks; ++chunk)
    mine.push_back(model.stage().backbone(chunk).frozen_bytes());
  mine.push_back(model.shards() != nullptr ? model.shards()->gathered_bytes() : 0);
  model.groups().pipeline_group->AllGather(
      {.data = mine.data(), .count = width, .type = comm::DType::kInt64},
      {.data = all.data(), .count = all.size(), .type = comm::DType::kInt64});
  std::vector<StageRecord> records;
  for (const sharding::StageChunk& part : plan.parts) {
    const int64_t* const of_stage = all.data() + static_cast<size_t>(part.stage) * width;
    records.push_back({.stage = part.stage,
                       .first_layer = part.first_layer,
                       .end_layer = part.end_layer(),
                       .bytes = of_stage[part.chunk],
                       .gathered_bytes = of_stage[chunks]});
  }
  return records;
}

}  // namespace

absl::Status Trainer::OpenMetrics() {
  RunRecord run;
  run.versions = {{"graft", Version()},
                  {"libtorch", TORCH_VERSION},
                  {"mpi", comm::MpiVersion()},
                  {"nccl", comm::NcclVersion()},
                  {"cuda", comm::CudaVersion()}};
  run.layout = Layout();
  run.trainable_parameters = model_->trainable_parameters();
  run.head_parameters = model_->head_parameters();
  run.encoder_parameters = model_->encoder_parameters();
  run.total_parameters = model_->total_parameters();
  run.predicted_memory_bytes =
      *std::max_element(predicted_memory_.begin(), predicted_memory_.end());
  run.stages = StagesOf(*model_);
  for (StageRecord& stage : run.stages)
    stage.predicted_memory_bytes = predicted_memory_[static_cast<size_t>(stage.stage)];
  const models::QuantizationReport& quantized = model_->quantization();
  run.quantization = {.kind = recipe_.model.quantize,
                      .matrices = quantized.matrices,
                      .mean_error = quantized.mean(),
                      .largest_error = quantized.largest,
                      .largest_error_matrix = quantized.largest_matrix};
  const auto open = [&]() -> absl::Status {
    const std::string& output = recipe_.run.output;
    GRAFT_RETURN_IF_ERROR(AtomicWriteFile(JoinPath(output, "recipe.yaml"), RecipeYaml(recipe_)));
    GRAFT_ASSIGN_OR_RETURN(metrics_,
                           MetricsLog::Open(JoinPath(output, "metrics.jsonl"), state_.step));
    GRAFT_RETURN_IF_ERROR(metrics_->Write(run));
    if (state_.step > 0)
      GRAFT_RETURN_IF_ERROR(metrics_->Write(ResumeRecord{state_.step, resumed_from_, Layout()}));
    progress_ = std::make_unique<Progress>(total_steps(), recipe_.log.every, StderrIsTerminal());
    return absl::OkStatus();
  };
  return Agree(IsRankZero() ? open() : absl::OkStatus());
}

void Trainer::ShowStart() const {
  if (!IsRankZero()) return;
  if (model_->method().reads_prompt()) {
    const int64_t leaking = CountPromptTargets(*train_data_);
    if (leaking > 0) {
      LOG(WARNING) << recipe_.data.train << ": " << leaking
                   << " trained tokens lie inside the prompt, "
                   << "all of which method " << model_->method().name()
                   << " has read when it predicts them; prepare the data with the loss on answers";
    }
  }
  LOG(INFO) << SiteMatchTable(model_->method(), model_->matched());
  LOG(INFO) << ParameterLine(model_->trainable_parameters(), model_->total_parameters());
  for (const sharding::StageChunk& part : model_->plan().parts) {
    LOG(INFO) << "stage " << part.stage << ": layers " << part.first_layer << "-"
              << part.end_layer() - 1 << (part.embed ? ", embedding" : "")
              << (part.head ? ", head" : "") << ", cost " << part.cost;
  }
  LOG(INFO) << total_steps() << " steps of " << recipe_.optim.global_batch << " samples; data "
            << recipe_.parallel.data << " x pipeline " << recipe_.parallel.pipeline << ", "
            << model_->threads() << " threads a rank";
}

}  // namespace graft::trainer
