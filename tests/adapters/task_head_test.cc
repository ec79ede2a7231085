// The task head as a part of a method: names, counts, initial values, dropout, and what is refused.
#include "adapters/task_head.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "adapters/tensor_check.h"
#include "models/backbone.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

using models::Role;
using models::SiteSpec;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TaskHeadSpec RobertaHead(int64_t width = 8, int64_t outputs = 3) {
  return {.module = "classifier",
          .has_dense = true,
          .width = width,
          .outputs = outputs,
          .initializer_range = 0.02,
          .num_layers = 1};
}

std::unique_ptr<Method> Headed(const TaskHeadSpec& spec, const std::string& method = "red") {
  return WithTaskHead(MethodWith(method, {}), spec);
}

std::vector<SiteSpec> Matched(const Method& method) {
  return ValueOrThrow(method.MatchSites(ToyModel::Sites()));
}

std::unique_ptr<AdapterSet> AttachTo(const Method& method, models::SiteTable& table,
                                     NamedTensors stored = {}) {
  AttachOptions options;
  options.seed = 3;
  options.num_layers = 1;
  options.stored_head = std::move(stored);
  return ValueOrThrow(AdapterSet::Attach(method, Matched(method), options, table));
}

torch::Tensor Outputs(const models::SiteTable& table, const torch::Tensor& pooled, bool training) {
  const models::MicroBatch batch =
      BatchOf(std::vector<int64_t>(static_cast<size_t>(pooled.size(0)), 4));
  models::SiteContext context;
  context.batch = &batch;
  context.training = training;
  context.layer = 1;
  return table.EditHidden(Role::kHead, pooled, context);
}

TEST(TaskHead, ParametersComeLastUnderPeftsNames) {
  const auto method = Headed(RobertaHead());
  const auto parameters = method->Parameters(Matched(*method));
  std::vector<std::string> names;
  for (const ParameterSpec& p : parameters) names.push_back(p.name);
  EXPECT_THAT(names, ElementsAre("base_model.model.model.layers.0.mlp.down_proj.red_scale",
                                 "base_model.model.model.layers.0.mlp.down_proj.red_bias",
                                 "base_model.model.classifier.dense.weight",
                                 "base_model.model.classifier.dense.bias",
                                 "base_model.model.classifier.out_proj.weight",
                                 "base_model.model.classifier.out_proj.bias"));
  EXPECT_EQ(parameters.back().layer, 2);
  const auto config = method->PeftConfig(Matched(*method), {"", "SEQ_CLS"});
  EXPECT_EQ(config.at("modules_to_save"), nlohmann::json({"classifier"}));
}

// methods.md 1.3.
TEST(TaskHead, CountsOfRoberta) {
  for (const auto& [shape, count] :
       {std::pair<const char*, int64_t>{"roberta-base", 592'130}, {"roberta-large", 1'051'650}}) {
    const models::ModelConfig config = ValueOrThrow(models::NamedShape(shape));
    TaskHeadSpec spec = RobertaHead(config.hidden_size, 2);
    spec.num_layers = static_cast<int>(config.num_layers);
    const auto method = Headed(spec, "none");
    EXPECT_EQ(method->CountParameters(*method->MatchSites(models::ListSites(config))), count);
  }
}

// methods.md 3, 5 and 13.
TEST(TaskHead, CountsOfAdaptersOnRoberta) {
  const auto count = [](const std::string& shape, const char* name, const FieldList& fields) {
    const auto method = MethodWith(name, fields);
    const auto sites = models::ListSites(ValueOrThrow(models::NamedShape(shape)));
    return method->CountParameters(*method->MatchSites(sites));
  };
  const FieldList red_plus = {{"sites", "[attn.q, attn.k, attn.v, attn.out, ffn.out]"}};
  EXPECT_EQ(count("roberta-base", "red", {}), 18'432);
  EXPECT_EQ(count("roberta-large", "red", {}), 49'152);
  EXPECT_EQ(count("roberta-base", "red", red_plus), 92'160);
  EXPECT_EQ(count("roberta-large", "red", red_plus), 245'760);
  EXPECT_EQ(count("roberta-base", "lora", {}), 294'912);
  EXPECT_EQ(count("roberta-base", "lora", {{"sites", "[all]"}}), 1'327'104);
  EXPECT_EQ(count("roberta-large", "lora", {{"sites", "[attn.q, attn.k, attn.v]"}, {"rank", "16"}}),
            2'359'296);
}

TEST(TaskHead, FreshWeightsAreNormalAndBiasesZero) {
  const auto method = Headed(RobertaHead(96, 5), "none");
  models::SiteTable table;
  const auto set = AttachTo(*method, table);
  const torch::Tensor dense = set->parameters()[0].value.detach();
  EXPECT_NEAR(dense.std().item<double>(), 0.02, 0.001);
  EXPECT_NEAR(dense.mean().item<double>(), 0, 0.001);
  EXPECT_EQ(set->parameters()[1].value.abs().max().item<float>(), 0);
  models::SiteTable other;
  EXPECT_TRUE(at::equal(AttachTo(*method, other)->values(), set->values()));
}

TEST(TaskHead, AHeadOfTheModelFolderIsKept) {
  const auto method = Headed(RobertaHead(), "none");
  const torch::Tensor stored = at::randn({3, 8});
  models::SiteTable table;
  const auto set = AttachTo(*method, table, {{"classifier.out_proj.weight", stored}});
  EXPECT_TRUE(at::equal(set->parameters()[2].value.detach(), stored));
}

TEST(TaskHead, ComputesDenseTanhAndProjection) {
  const auto method = Headed(RobertaHead(), "none");
  models::SiteTable table;
  const auto set = AttachTo(*method, table);
  at::NoGradGuard no_grad;
  for (const NamedParameter& p : set->parameters()) p.value.normal_();
  const auto& p = set->parameters();
  const torch::Tensor x = at::randn({4, 8});
  const torch::Tensor hidden = at::tanh(at::matmul(x, p[0].value.t()) + p[1].value);
  const torch::Tensor want = at::matmul(hidden, p[2].value.t()) + p[3].value;
  EXPECT_LT(RelativeError(Outputs(table, x, true), want), 1e-5);
}

TEST(TaskHead, DropoutActsInTrainingAloneAndDependsOnTheSample) {
  TaskHeadSpec spec = RobertaHead();
  spec.dropout = 0.5;
  const auto method = Headed(spec, "none");
  models::SiteTable table;
  const auto set = AttachTo(*method, table);
  at::NoGradGuard no_grad;
  for (const NamedParameter& p : set->parameters()) p.value.normal_();
  const torch::Tensor same = at::randn({1, 8}).expand({6, 8}).contiguous();
  const torch::Tensor off = Outputs(table, same, false), on = Outputs(table, same, true);
  EXPECT_TRUE(at::equal(off[0], off[1]));
  EXPECT_FALSE(at::equal(on[0], on[1]));
  EXPECT_TRUE(at::equal(on, Outputs(table, same, true)));
}

TEST(TaskHead, AFrozenHeadIsNeitherTrainedNorWritten) {
  TaskHeadSpec spec = RobertaHead();
  spec.train = false;
  const auto method = Headed(spec);
  models::SiteTable table;
  const auto set = AttachTo(*method, table);
  EXPECT_EQ(set->size(), 16);
  EXPECT_EQ(method->CountParameters(Matched(*method)), 16);
  EXPECT_FALSE(Outputs(table, at::randn({2, 8}), true).requires_grad());
}

TEST(TaskHead, MergesAsTheMethodInside) {
  const auto method = Headed(RobertaHead());
  NamedTensors tensors;
  for (const ParameterSpec& parameter : method->Parameters(Matched(*method))) {
    tensors.emplace_back(parameter.name, at::full(parameter.shape, 2.0, at::kFloat));
  }
  torch::Tensor weight = at::ones({8, 6}), bias;
  const SiteSpec site = Matched(*method)[0];
  EXPECT_TRUE(method->MergeAddsBias(site));
  ASSERT_TRUE(method->Merge(site, tensors, &weight, &bias).ok());
  EXPECT_TRUE(at::equal(weight, at::full({8, 6}, 2.0)));  // RED, scale and bias 2
  EXPECT_TRUE(at::equal(bias, at::full({8}, 2.0)));
}

TEST(TaskHead, StandsWherePeftPutsItForThatType) {
  const auto method = Headed(RobertaHead(), "prompt_tuning");
  EXPECT_EQ(std::string(method->head_prefix()), "base_model.");
  EXPECT_EQ(method->Parameters(Matched(*method)).back().name,
            "base_model.classifier.out_proj.bias");
}

}  // namespace
}  // namespace graft::adapters
