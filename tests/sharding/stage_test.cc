// Real layers and methods on stages: a small Llama with LoRA or RED gives the same losses and
// gradients however it is cut.
#include "sharding/stage.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <string>

#include "base/hash.h"
#include "models/weights/weight_source.h"
#include "sharding/executor.h"
#include "tests/adapters/testing.h"
#include "tests/sharding/fake_model.h"
#include "tests/testing/run_ranks.h"

namespace graft::sharding {
namespace {

struct Setting {
  std::string method;
  FieldList fields;
  int first_layer = 0;  // trained from here on
  bool recompute = false;
  torch::Dtype dtype = torch::kFloat32;
};

struct Cut {
  int stages = 1;
  int chunks = 1;
};

struct Outcome {
  std::vector<double> losses;
  std::map<std::string, torch::Tensor> gradients;
};

// Initial values leave LoRA's first gradients zero; these do not, and depend on the name alone.
void Disturb(adapters::AdapterSet& set) {
  at::NoGradGuard no_grad;
  for (const adapters::NamedParameter& parameter : set.parameters()) {
    const int number = static_cast<int>(Hash64(parameter.name.data(), parameter.name.size()) % 997);
    const torch::Tensor index = at::arange(parameter.value.numel(), at::kFloat);
    torch::Tensor value = parameter.value;
    value.add_(0.05 * at::sin(index * 1.3 + number).view(value.sizes()));
  }
}

Outcome RunCut(const Setting& setting, const Cut& cut) {
  const models::ModelConfig config = ValueOrThrow(models::NamedShape("llama-tiny"));
  const int num_layers = static_cast<int>(config.num_layers);
  const auto method = adapters::MethodWith(setting.method, setting.fields);
  std::vector<models::SiteSpec> sites;
  for (const models::SiteSpec& site : models::ListSites(config)) {
    if (site.id.layer >= setting.first_layer) sites.push_back(site);
  }
  const auto matched = ValueOrThrow(method->MatchSites(sites));
  PlanOptions plan_options;
  plan_options.stages = cut.stages;
  plan_options.chunks = cut.chunks;
  const Plan plan =
      ValueOrThrow(MakePlan(config, CountTrainables(*method, matched, num_layers), plan_options));
  Outcome outcome;
  std::mutex mutex;
  testing::RunRanks(cut.stages, [&](comm::Communicator& pipeline) {
    const auto weights = models::SyntheticWeights(config, 5);
    models::BackboneOptions backbone;
    backbone.recompute = setting.recompute;
    backbone.dtype = setting.dtype;
    adapters::AttachOptions attach;
    attach.seed = 3;
    attach.num_layers = num_layers;
    attach.model_dtype = attach.compute_dtype = setting.dtype;
    auto stage = ValueOrThrow(
        Stage::Build(plan, pipeline.rank(), config, *weights, backbone, *method, matched, attach));
    Disturb(stage->adapters());
    ExecutorOptions options;
    options.schedule = cut.chunks > 1 ? ScheduleKind::kInterleaved : ScheduleKind::k1F1B;
    options.dtype = setting.dtype;
    Executor executor(plan, *stage, pipeline, options);
    const auto batches = testing::FakeMicroBatches(4);
    const StepResult result = executor.TrainStep(batches);
    std::lock_guard<std::mutex> lock(mutex);
    if (pipeline.rank() + 1 == cut.stages) outcome.losses = result.losses;
    for (const adapters::NamedParameter& parameter : stage->adapters().parameters()) {
      outcome.gradients[parameter.name] = parameter.value.grad().clone();
    }
  });
  return outcome;
}

void ExpectEqualCuts(const Setting& setting) {
  const Outcome expected = RunCut(setting, {1, 1});
  ASSERT_EQ(expected.losses.size(), 4u);
  ASSERT_FALSE(expected.gradients.empty());
  for (const Cut& cut : {Cut{2, 1}, Cut{4, 1}, Cut{2, 2}, Cut{1, 2}}) {
    const Outcome found = RunCut(setting, cut);
    SCOPED_TRACE(setting.method + " on " + std::to_string(cut.stages) + " x " +
                 std::to_string(cut.chunks));
    ASSERT_EQ(found.losses.size(), 4u);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_NEAR(found.losses[i], expected.losses[i], 1e-6 * expected.losses[i]);
    }
    ASSERT_EQ(found.gradients.size(), expected.gradients.size());
    for (const auto& [name, gradient] : expected.gradients) {
      EXPECT_GT(gradient.abs().max().item<float>(), 0) << name;
      EXPECT_LT(adapters::RelativeError(found.gradients.at(name), gradient), 1e-5) << name;
    }
  }
}

TEST(Stage, LoraWithDropoutOnEveryCut) {
  ExpectEqualCuts({"lora", {{"sites", "[all]"}, {"dropout", "0.1"}}});
}

TEST(Stage, LoraWithRecomputationOnEveryCut) {
  ExpectEqualCuts({"lora", {{"sites", "[attn.q, ffn.down]"}, {"dropout", "0.1"}}, 0, true});
}

TEST(Stage, LoraAboveAFrozenPrefixOnEveryCut) {
  ExpectEqualCuts({"lora", {{"sites", "[attn.v, ffn.up]"}}, 2});
}

TEST(Stage, RedOnEveryCut) { ExpectEqualCuts({"red", {}}); }

TEST(Stage, RedInBfloat16OnEveryCut) { ExpectEqualCuts({"red", {}, 1, false, torch::kBFloat16}); }

TEST(Stage, LoadsItsOwnLayersOnly) {
  const models::ModelConfig config = ValueOrThrow(models::NamedShape("llama-tiny-untied"));
  const auto method = adapters::MethodWith("lora", {});
  const auto matched = ValueOrThrow(method->MatchSites(models::ListSites(config)));
  PlanOptions options;
  options.stages = 2;
  const Plan plan = ValueOrThrow(MakePlan(
      config, CountTrainables(*method, matched, static_cast<int>(config.num_layers)), options));
  const auto weights = models::SyntheticWeights(config, 5);
  adapters::AttachOptions attach;
  attach.num_layers = static_cast<int>(config.num_layers);
  int64_t parameters = 0, trained = 0;
  for (int index = 0; index < 2; ++index) {
    auto stage =
        ValueOrThrow(Stage::Build(plan, index, config, *weights, {}, *method, matched, attach));
    parameters += stage->backbone(0).frozen_parameters();
    trained += stage->adapters().size();
    for (const adapters::NamedParameter& parameter : stage->adapters().parameters()) {
      EXPECT_GE(parameter.layer, plan.parts[static_cast<size_t>(index)].first_layer);
      EXPECT_LT(parameter.layer, plan.parts[static_cast<size_t>(index)].end_layer());
    }
  }
  EXPECT_EQ(parameters, models::CountParameters(config));
  EXPECT_EQ(trained, method->CountParameters(matched));
}

}  // namespace
}  // namespace graft::sharding
