#include "adapters/importance.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "adapters/importance_file.h"
#include "base/json.h"
#include "tests/testing/status_matchers.h"

namespace graft::adapters {
namespace {

using models::Role;
using ::testing::DoubleEq;
using ::testing::HasSubstr;

// The written-out case of docs/fanlora.md: one layer, two modules, three samples of 2, 1 and 5
// trained tokens.
struct SmallCase {
  std::vector<ModuleScore> modules = {{{0, Role::kAttnQ}, 4, 4}, {{0, Role::kAttnV}, 4, 2}};
  SampleRange samples{{2, 1, 5}, 2};
  AblationValues values{.loo = {{0.5, 0.25, 1.25}, {0.25, -0.25, 0.5}},
                        .keep_one = {{1.0, 0.0, 1.0}, {0.5, 0.5, 2.0}},
                        .all = {3.0, 1.0, 6.0},
                        .bare = {5.0, 2.0, 11.0}};
};

TEST(ImportanceTest, AblationOfTheWrittenOutCase) {
  SmallCase c;
  ScoreAblation("loo", c.values, c.samples, &c.modules);
  EXPECT_DOUBLE_EQ(c.modules[0].score, 2.0 / 8);
  EXPECT_DOUBLE_EQ(c.modules[1].score, 0.5 / 8);
  // d = (0.5, 0.25, 1.25), D c = (0.5, 0.25, 1.25): every sample has the mean, so there is no
  // spread.
  EXPECT_EQ(c.modules[0].standard_error, 0.0);
  // D = 1/16; d - D c = (0.125, -0.3125, 0.1875): squares add to 0.1484375.
  EXPECT_DOUBLE_EQ(*c.modules[1].standard_error, std::sqrt(3.0 / 2 * 0.1484375) / 8);

  ScoreAblation("keep_one", c.values, c.samples, &c.modules);
  EXPECT_DOUBLE_EQ(c.modules[0].score, 2.0 / 8);
  EXPECT_DOUBLE_EQ(c.modules[1].score, 3.0 / 8);

  ScoreAblation("ab", c.values, c.samples, &c.modules);
  // loo + keep_one + (10 - 18) / 8.
  EXPECT_DOUBLE_EQ(c.modules[0].score, 0.25 + 0.25 - 1.0);
  EXPECT_DOUBLE_EQ(c.modules[1].score, 0.0625 + 0.375 - 1.0);
  EXPECT_DOUBLE_EQ(c.modules[0].Term("loo"), 0.25);
  EXPECT_DOUBLE_EQ(c.modules[0].Term("keep_one"), 0.25);
  // d_n = (0.5 + 1 - 2, 0.25 + 0 - 1, 1.25 + 1 - 5), D = -1/2.
  const double rest[] = {-0.5 + 1.0, -0.75 + 0.5, -2.75 + 2.5};
  double squares = 0;
  for (const double r : rest) squares += r * r;
  EXPECT_DOUBLE_EQ(*c.modules[0].standard_error, std::sqrt(1.5 * squares) / 8);

  ScoreAblation("ab_rank", c.values, c.samples, &c.modules);
  EXPECT_DOUBLE_EQ(c.modules[0].score, 0.5);  // first by loo, last by keep_one
  EXPECT_DOUBLE_EQ(c.modules[1].score, 0.5);
}

TEST(ImportanceTest, RanksInsideTheLayerShareTies) {
  std::vector<ModuleScore> modules = {{{0, Role::kAttnQ}, 1, 1},
                                      {{0, Role::kAttnK}, 1, 1},
                                      {{0, Role::kAttnV}, 1, 1},
                                      {{1, Role::kAttnQ}, 1, 1}};
  AblationValues values{.loo = {{1}, {1}, {5}, {-9}}, .keep_one = {{0}, {2}, {3}, {-9}}};
  ScoreAblation("ab_rank", values, {{1}, 1}, &modules);
  EXPECT_DOUBLE_EQ(modules[0].score, (0.5 + 0.0) / 2 / 2);
  EXPECT_DOUBLE_EQ(modules[1].score, (0.5 + 1.0) / 2 / 2);
  EXPECT_DOUBLE_EQ(modules[2].score, 1.0);
  EXPECT_DOUBLE_EQ(modules[3].score, 1.0) << "alone in its layer";
  EXPECT_FALSE(modules[0].standard_error.has_value());
}

TEST(ImportanceTest, TaylorTakesTheSampleAsUnit) {
  SmallCase c;
  const SampleValues t = {{0.5, -1.0, 1.5}, {-2.0, -1.0, -1.0}};
  ScoreTaylor("taylor", t, c.samples, &c.modules);
  EXPECT_DOUBLE_EQ(c.modules[0].score, 1.0 / 8);
  EXPECT_DOUBLE_EQ(c.modules[1].score, -4.0 / 8);
  ScoreTaylor("taylor_abs", t, c.samples, &c.modules);
  EXPECT_DOUBLE_EQ(c.modules[0].score, 3.0 / 8);
  ScoreTaylor("taylor_sq", t, c.samples, &c.modules);
  EXPECT_DOUBLE_EQ(c.modules[0].score, (0.25 + 1.0 + 2.25) / 8);
  EXPECT_DOUBLE_EQ(c.modules[0].Term("taylor_abs"), 3.0 / 8);
}

TEST(ImportanceTest, LoraDropCountsAllTokensAndItsShare) {
  SmallCase c;
  const SampleValues edits = {{1, 2, 3}, {4, 0, 2}}, outputs = {{10, 10, 20}, {5, 5, 50}};
  ScoreLoraDrop("lora_drop", edits, outputs, /*num_tokens=*/24, 2, &c.modules);
  EXPECT_DOUBLE_EQ(c.modules[0].score, 6.0 / 24);
  EXPECT_DOUBLE_EQ(c.modules[0].Term("share"), 0.5);
  ScoreLoraDrop("lora_drop_relative", edits, outputs, 24, 2, &c.modules);
  EXPECT_DOUBLE_EQ(c.modules[0].score, 6.0 / 40);
  EXPECT_DOUBLE_EQ(c.modules[1].score, 6.0 / 60);
  EXPECT_FALSE(c.modules[0].standard_error.has_value());
}

// Half of the values are tiny, so that another order of the additions gives other bits.
TEST(ImportanceTest, SumsRunInsideShardsThenOverThem) {
  const std::vector<double> values = {1e16, 1.0, 1.0, -1e16};
  EXPECT_EQ(OrderedSum(values, 2), (1e16 + 1.0) + (1.0 + -1e16));
  EXPECT_EQ(OrderedSum(values, 4), ((1e16 + 1.0) + 1.0) + -1e16);
  EXPECT_EQ(OrderedSum({1, 2, 3}, 2), 6.0) << "the last shard is shorter";
}

TEST(ImportanceTest, RandomDependsOnSeedLayerAndRoleAlone) {
  SmallCase a, b;
  ScoreRandom(7, &a.modules);
  std::reverse(b.modules.begin(), b.modules.end());
  ScoreRandom(7, &b.modules);
  EXPECT_EQ(a.modules[0].score, b.modules[1].score);
  EXPECT_NE(a.modules[0].score, a.modules[1].score);
  ScoreRandom(8, &b.modules);
  EXPECT_NE(a.modules[0].score, b.modules[1].score);
  EXPECT_GT(a.modules[0].score, 0.0);
  EXPECT_LT(a.modules[0].score, 1.0);
}

TEST(ImportanceTest, OneSampleHasNoStandardError) {
  EXPECT_FALSE(StandardError({1.0}, {{4}, 1}).has_value());
}

Importance Example() {
  Importance importance;
  importance.score = "ab";
  importance.model_type = "llama";
  importance.num_layers = 2;
  importance.model_fingerprint = "m";
  importance.adapter_fingerprint = "a";
  importance.data_fingerprint = "d";
  importance.num_samples = 3;
  importance.num_tokens = 20;
  importance.num_trained_tokens = 8;
  importance.base_loss = 1.25;
  importance.grid = {"float32", 1, 32, 4, 4};
  importance.reference = ReferenceSize{8, 16.0, false};
  importance.modules = {
      {{0, Role::kAttnQ}, 4, 4, 0.1, 1.0 / 3, {{"loo", 0.1}, {"keep_one", 1e-300}}},
      {{1, Role::kFfnDown}, 6, 4, -0.0, std::nullopt, {}}};
  return importance;
}

TEST(ImportanceFileTest, ReadsBackToTheSameBytes) {
  const std::string text = ImportanceText(Example());
  EXPECT_THAT(text, HasSubstr("\"score\": 0.10000000000000001"));
  EXPECT_THAT(text, HasSubstr("\"bare_loss\": null"));
  const auto json = ParseJson(text, "importance.json");
  ASSERT_TRUE(json.ok()) << json.status();
  const auto read = ParseImportance(*json, "importance.json");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->modules[0].Term("keep_one"), 1e-300);
  EXPECT_EQ(read->modules[0].standard_error, 1.0 / 3);
  EXPECT_EQ(read->reference->alpha, 16.0);
  // terms come back sorted by name, which is the one thing that a reader does not keep.
  Importance sorted = Example();
  std::sort(sorted.modules[0].terms.begin(), sorted.modules[0].terms.end());
  EXPECT_EQ(ImportanceText(*read), ImportanceText(sorted));
}

TEST(ImportanceFileTest, RefusesWhatItDoesNotUnderstand) {
  const auto error_of = [](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = nlohmann::json::parse(ImportanceText(Example()));
    change(json);
    const auto read = ParseImportance(json, "importance.json");
    EXPECT_FALSE(read.ok());
    EXPECT_EQ(KindOf(read.status()), ErrorKind::kInput);
    return std::string(read.status().message());
  };
  using Json = nlohmann::json;
  EXPECT_THAT(error_of([](Json& j) { j["format"] = "x"; }), HasSubstr("format: found \"x\""));
  EXPECT_THAT(error_of([](Json& j) { j["version"] = 2; }), HasSubstr("score again"));
  EXPECT_THAT(error_of([](Json& j) { j["extra"] = 1; }), HasSubstr("extra"));
  EXPECT_THAT(error_of([](Json& j) { j["score"] = "paper"; }), HasSubstr("must be one of loo"));
  EXPECT_THAT(error_of([](Json& j) { j["modules"][0]["role"] = "layer.in"; }),
              HasSubstr("modules[0]: role"));
  EXPECT_THAT(error_of([](Json& j) { j["modules"][1] = j["modules"][0]; }),
              HasSubstr("modules[1]: layer 0 attn.q comes twice"));
  EXPECT_THAT(error_of([](Json& j) { j["modules"][1]["layer"] = 2; }), HasSubstr("modules[1]"));
  EXPECT_THAT(error_of([](Json& j) { j["modules"][0]["score"] = "0.1"; }), HasSubstr("score"));
  EXPECT_THAT(error_of([](Json& j) { j["modules"][0].erase("stderr"); }),
              HasSubstr("stderr: missing"));
  EXPECT_THAT(error_of([](Json& j) { j["modules"] = Json::array(); }), HasSubstr("no module"));
  EXPECT_THAT(error_of([](Json& j) { j.erase("base_loss"); }), HasSubstr("base_loss: missing"));
}

}  // namespace
}  // namespace graft::adapters
