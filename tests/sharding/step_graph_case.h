// A small whole model on one rank, trained through the executor with a recorder of passes or
// without. Used by step_graph_test.cc on the host and by tests/gpu.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "adapters/task_head.h"
#include "base/recipe_yaml.h"
#include "base/status.h"
#include "comm/local_communicator.h"
#include "models/weights/weight_source.h"
#include "sharding/executor.h"
#include "tests/adapters/testing.h"
#include "tests/models/tiny_config.h"

namespace graft::testing {

struct GraphCase {
  std::string title, model_type, method;
  FieldList fields;
  int64_t outputs = 0;  // of a task head; 1: regression
};
inline void PrintTo(const GraphCase& c, std::ostream* out) { *out << c.title; }

// Every kind of place where a pass reads numbers of its batch.
inline std::vector<GraphCase> GraphCases() {
  return {
      {"llama_lora", "llama", "lora", {{"sites", "[all]"}}},
      {"llama_para", "llama", "para", {{"rank", "3"}}},
      {"llama_idpg", "llama", "idpg", {{"prompt_length", "2"}, {"hidden", "8"}, {"dropout", "0"}}},
      {"llama_classes", "llama", "red", {}, 3},
      {"gpt2_ia3", "gpt2", "ia3", {{"sites", "[all]"}}},
      {"roberta_lora_classes", "roberta", "lora", {}, 3},
      {"roberta_prompt_regression", "roberta", "prompt_tuning", {{"prompt_length", "3"}}, 1},
  };
}

class GraphedModel {
 public:
  GraphedModel(const GraphCase& which, torch::Device device, torch::Dtype dtype,
               sharding::PassRecorder recorder)
      : case_(which), config_(models::TinyConfig(which.model_type, kLayers)) {
    method_ = adapters::MethodWith(which.method, which.fields);
    if (which.outputs > 0) {
      const models::TaskHeadModule head = models::TaskHeadOf(config_);
      method_ = adapters::WithTaskHead(std::move(method_), {.module = head.module,
                                                            .has_dense = head.has_dense,
                                                            .width = config_.hidden_size,
                                                            .outputs = which.outputs,
                                                            .num_layers = kLayers});
    }
    const auto matched = ValueOrThrow(method_->MatchSites(models::ListSites(config_)));
    plan_ = ValueOrThrow(
        sharding::MakePlan(config_, sharding::CountTrainables(*method_, matched, kLayers), {}));
    const auto weights = models::SyntheticWeights(config_, 5);
    models::BackboneOptions backbone;
    backbone.dtype = dtype;
    backbone.device = device;
    backbone.language_head = which.outputs == 0;
    adapters::AttachOptions attach;
    attach.seed = 3;
    attach.num_layers = kLayers;
    attach.model_dtype = attach.compute_dtype = dtype;
    attach.device = device;
    attach.vocab_size = config_.vocab_size;
    stage_ = ValueOrThrow(
        sharding::Stage::Build(plan_, 0, config_, *weights, backbone, *method_, matched, attach));
    const torch::Tensor& values = stage_->adapters().values();
    at::manual_seed(1);
    values.add_(at::randn(values.sizes()).to(device), 0.05);  // away from zero gradients
    sharding::ExecutorOptions options;
    options.dtype = dtype;
    options.device = device;
    options.pass_recorder = std::move(recorder);
    pipeline_ = std::move(comm::MakeLocalCommunicators(1)[0]);
    executor_ = std::make_unique<sharding::Executor>(plan_, *stage_, *pipeline_, options);
  }

  // Samples of these lengths; `number` chooses the tokens, targets and labels.
  models::MicroBatch Batch(const std::vector<int64_t>& lengths, int64_t number) const {
    models::MicroBatch batch;
    batch.step = 1 + number;
    for (const int64_t text : lengths) {
      const int64_t begin = batch.num_rows(), front = method_->virtual_rows();
      batch.segments.push_back({100 * number + begin, begin, front + text, 2, front});
      for (int64_t t = 0; t < front + text; ++t) {
        batch.tokens.push_back(t < front ? 0 : (7 * t + 13 * begin + 31 * number + 5) % 101);
        batch.positions.push_back(t);
        if (case_.outputs > 0 || t <= front) continue;
        batch.target_rows.push_back(begin + t - 1);
        batch.target_ids.push_back(batch.tokens.back());
      }
      if (case_.outputs > 1) batch.labels.push_back((begin + number) % case_.outputs);
      if (case_.outputs == 1) batch.values.push_back(0.25f * static_cast<float>(begin - number));
    }
    return batch;
  }

  // Gradients from zero, and an update as an optimizer would make it.
  sharding::StepResult Step(const std::vector<models::MicroBatch>& batches) {
    adapters::AdapterSet& set = stage_->adapters();
    set.ZeroGradients();
    sharding::StepResult result = executor_->TrainStep(batches);
    gradients_ = set.gradients().to(torch::kCPU, set.gradients().scalar_type(),
                                    /*non_blocking=*/false, /*copy=*/true);
    set.values().add_(set.gradients(), -1e-3);
    return result;
  }

  const torch::Tensor& gradients() const { return gradients_; }  // of the last step, on the host
  sharding::Stage& stage() { return *stage_; }
  const sharding::MicroBatchGraphs* graphs() const { return executor_->graphs(); }

 private:
  static constexpr int kLayers = 3;
  const GraphCase case_;
  const models::ModelConfig config_;
  std::unique_ptr<adapters::Method> method_;
  sharding::Plan plan_;
  std::unique_ptr<sharding::Stage> stage_;
  std::unique_ptr<comm::Communicator> pipeline_;
  std::unique_ptr<sharding::Executor> executor_;
  torch::Tensor gradients_;
};

// Steps of micro-batches of three layouts, each with numbers of its own: layouts come again within
// a step and in later ones, and one comes only once.
inline std::vector<std::vector<models::MicroBatch>> GraphSteps(const GraphedModel& model) {
  const std::vector<int64_t> even = {9, 9}, one = {18}, ragged = {4, 11, 3};
  const std::vector<std::vector<std::vector<int64_t>>> layouts = {{even, even, one},
                                                                  {one, {5, 6}, even},
                                                                  {even, one, one, even},
                                                                  {ragged, one, ragged, even},
                                                                  {even, ragged}};
  std::vector<std::vector<models::MicroBatch>> steps;
  int64_t number = 0;
  for (const auto& step : layouts) {
    steps.emplace_back();
    for (const auto& lengths : step) steps.back().push_back(model.Batch(lengths, number++));
  }
  return steps;
}
inline constexpr int64_t kGraphReplays = 9;  // of those steps' 16 micro-batches

}  // namespace graft::testing
