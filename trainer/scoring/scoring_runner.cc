#include "trainer/scoring/scoring_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "adapters/tensor_check.h"
#include "base/status.h"
#include "sharding/buffer.h"
#include "trainer/data/collate.h"

namespace graft::trainer {
namespace {

using models::SiteSpec;

// Not one of the executor's flows, which use the same link.
constexpr uint32_t kFlow = comm::TransferId::kMaxTensor;

uint32_t ShortHash(const sharding::Plan& plan) {
  return static_cast<uint32_t>(std::stoul(plan.Hash().substr(0, 8), nullptr, 16));
}

// The linear's bias as float32, of a shared module its own part; undefined = it has none.
absl::StatusOr<torch::Tensor> BiasOf(const SiteSpec& module, models::WeightSource& weights) {
  const std::string name = module.module + ".bias";
  if (!weights.Has(name)) return torch::Tensor();
  const int64_t all = module.fused() ? module.fused_features : module.out_features;
  GRAFT_ASSIGN_OR_RETURN(const torch::Tensor bias, weights.Load(name, {all}, torch::kFloat32));
  return bias.narrow(0, module.fused_offset, module.out_features).clone();
}

adapters::NamedTensors ParametersOf(const adapters::AdapterSet& set) {
  adapters::NamedTensors tensors;
  for (const adapters::NamedParameter& parameter : set.parameters())
    tensors.emplace_back(parameter.name, parameter.value);
  return tensors;
}

}  // namespace

ScoringRunner::ScoringRunner(const ScoreTask& task, const Dataset& data, LoadedModel& model)
    : task_(task),
      data_(data),
      model_(model),
      backbone_(model.stage().backbone(0)),
      own_modules_(
          ModulesOf(task.modules, backbone_.range().first_layer, backbone_.range().end_layer())),
      link_(*model.groups().pipeline_group, ShortHash(model.plan())) {
  for (const adapters::NamedParameter& parameter : model.adapters().parameters())
    parameter.value.set_requires_grad(false);
}

absl::StatusOr<std::unique_ptr<ScoringRunner>> ScoringRunner::Create(
    const ScoreTask& task, const Dataset& data, LoadedModel& model, models::WeightSource& weights) {
  auto runner = std::unique_ptr<ScoringRunner>(new ScoringRunner(task, data, model));
  if (task.method == "lora_drop" || task.method == "lora_drop_relative")
    GRAFT_RETURN_IF_ERROR(runner->AddProbes(weights));
  return runner;
}

absl::Status ScoringRunner::AddProbes(models::WeightSource& weights) {
  const adapters::NamedTensors parameters = ParametersOf(model_.adapters());
  for (const SiteSpec& module : own_modules_) {
    GRAFT_ASSIGN_OR_RETURN(const adapters::LowRankEdit edit,
                           model_.method().LowRankAt(module, parameters));
    GRAFT_ASSIGN_OR_RETURN(torch::Tensor bias, BiasOf(module, weights));
    probes_.push_back(
        std::make_shared<LoraDropProbe>(edit, bias.defined() ? bias.to(model_.device()) : bias));
    backbone_.sites().AddFirst(module.id, probes_.back());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ScoringRunner::Run(const WorkItem& item,
                                               const ProgressCallback& progress) {
  const std::vector<models::MicroBatch> batches = MicroBatches(item);
  std::vector<double> values;
  if (item.kind == "taylor") {
    values = JoinStages(Differentiate(batches, progress));
  } else if (item.kind == "lora_drop" || item.kind == "loss") {
    values = JoinStages(Evaluate(item, batches, progress));
  } else {
    Columns columns;
    for (const models::MicroBatch& batch : batches) {
      Ablate(item, batch, &columns);
      progress();
    }
    for (const std::vector<double>& column : columns)
      values.insert(values.end(), column.begin(), column.end());
  }
  if (!model_.is_last_stage()) return std::string();
  GRAFT_RETURN_IF_ERROR(CheckFinite(item, values));
  return PackResult(values);
}

std::vector<models::MicroBatch> ScoringRunner::MicroBatches(const WorkItem& item) const {
  std::vector<models::MicroBatch> batches;
  for (int64_t done = 0; done < item.num_samples; done += item.micro_batch) {
    std::vector<int64_t> samples(
        static_cast<size_t>(std::min<int64_t>(item.micro_batch, item.num_samples - done)));
    std::iota(samples.begin(), samples.end(), item.first_sample + done);
    batches.push_back(Collate(data_, samples, /*step=*/0, static_cast<int64_t>(batches.size()),
                              /*virtual_rows=*/0, backbone_.config().decoder_start_token_id));
  }
  return batches;
}

// Keys and values of cross attention are made of the encoder's rows.
const models::MicroBatch& ScoringRunner::BatchAt(models::SiteId site,
                                                 const models::MicroBatch& batch) const {
  const bool of_encoder = site.layer < backbone_.config().encoder_layers ||
                          site.role == models::Role::kCrossK || site.role == models::Role::kCrossV;
  return batch.source != nullptr && of_encoder ? *batch.source : batch;
}

// t_n of a module is minus the gradient of sample n's loss by the module's gate, which is open;
// losses of the samples do not depend on each other's rows, so one backward pass gives all of them.
std::vector<double> ScoringRunner::Differentiate(const std::vector<models::MicroBatch>& batches,
                                                 const ProgressCallback& progress) {
  std::vector<models::SiteGates> gates(batches.size());
  for (size_t i = 0; i < batches.size(); ++i) {
    for (const SiteSpec& module : own_modules_)
      gates[i].rows[module.id] = at::ones({BatchAt(module.id, batches[i]).num_rows()},
                                          at::TensorOptions(at::kFloat).device(model_.device()))
                                     .requires_grad_();
  }
  const sharding::StepResult run =
      model_.executor().Differentiate(batches, [&](models::SiteContext& context) {
        context.gates = &gates[static_cast<size_t>(context.batch->index)];
        progress();
      });
  std::vector<double> values;
  for (const SiteSpec& module : own_modules_) {
    for (size_t i = 0; i < batches.size(); ++i) {
      const torch::Tensor gradient = gates[i].rows.at(module.id).grad().to(at::kCPU, at::kDouble);
      for (const models::Segment& segment : BatchAt(module.id, batches[i]).segments)
        values.push_back(-gradient.narrow(0, segment.begin, segment.length).sum().item<double>());
    }
  }
  values.insert(values.end(), run.losses.begin(), run.losses.end());
  return values;
}

std::vector<double> ScoringRunner::Evaluate(const WorkItem& item,
                                            const std::vector<models::MicroBatch>& batches,
                                            const ProgressCallback& progress) {
  for (const auto& probe : probes_) probe->Begin(item.num_samples, item.micro_batch);
  std::vector<double> losses;
  for (const models::MicroBatch& batch : batches) {
    const sharding::StepResult run = model_.executor().Evaluate({batch});
    losses.insert(losses.end(), run.losses.begin(), run.losses.end());
    progress();
  }
  std::vector<double> values;
  for (const auto& probe : probes_) {
    values.insert(values.end(), probe->edits().begin(), probe->edits().end());
    values.insert(values.end(), probe->outputs().begin(), probe->outputs().end());
  }
  values.insert(values.end(), losses.begin(), losses.end());
  return values;
}

std::vector<double> ScoringRunner::JoinStages(std::vector<double> mine) {
  if (model_.stage_index() > 0) {
    const torch::Tensor size = ReceiveFromBelow(at::empty({1}, at::kLong));
    const torch::Tensor below = ReceiveFromBelow(at::empty({size.item<int64_t>()}, at::kDouble));
    const auto* values = below.data_ptr<double>();
    mine.insert(mine.begin(), values, values + below.numel());
  }
  if (!model_.is_last_stage()) {
    SendUp(at::tensor(std::vector<int64_t>{static_cast<int64_t>(mine.size())}));
    SendUp(at::tensor(mine, at::kDouble));
  }
  return mine;
}

void ScoringRunner::SendUp(const torch::Tensor& tensor) {
  const torch::Tensor sent = tensor.to(at::kCPU).contiguous();
  link_
      .StartSend(sharding::BufferOf(sent), model_.stage_index() + 1,
                 {.step = sent_++, .micro_batch = 0, .tensor = kFlow})
      ->Wait();
}

torch::Tensor ScoringRunner::ReceiveFromBelow(const torch::Tensor& buffer) {
  link_
      .StartRecv(sharding::BufferOf(buffer), model_.stage_index() - 1,
                 {.step = received_++, .micro_batch = 0, .tensor = kFlow})
      ->Wait();
  return buffer;
}

absl::Status ScoringRunner::CheckFinite(const WorkItem& item,
                                        const std::vector<double>& values) const {
  const auto bad = std::find_if(values.begin(), values.end(),
                                [](double value) { return !std::isfinite(value); });
  if (bad == values.end()) return absl::OkStatus();
  const ResultPlace place = PlaceOf(task_, item, bad - values.begin());
  const int64_t sample = item.first_sample + place.first_sample;
  return NumericError(absl::StrCat(item.kind, ": found ", *bad, " for ", place.what,
                                   place.num_samples > 1 ? ", samples from id " : ", sample id ",
                                   data_.at(sample).sample_id, ", must be finite"));
}

}  // namespace graft::trainer
