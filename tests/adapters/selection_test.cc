#include "adapters/selection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "adapters/setting.h"
#include "base/json.h"
#include "tests/testing/status_matchers.h"

namespace graft::adapters {
namespace {

using models::Role;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Role kRoles[] = {Role::kAttnQ,   Role::kAttnK, Role::kAttnV,  Role::kAttnO,
                           Role::kFfnGate, Role::kFfnUp, Role::kFfnDown};

// `layers` layers of Llama-2-7B's shapes with all scores 0, but 1 for `high` in every layer.
Importance Llama7B(int layers, const std::vector<Role>& high) {
  Importance importance;
  importance.score = "loo";
  importance.model_type = "llama";
  importance.num_layers = layers;
  importance.reference = ReferenceSize{8, 16.0, false};
  for (int layer = 0; layer < layers; ++layer) {
    for (const Role role : kRoles) {
      ModuleScore module{{layer, role}, 4096, 4096};
      if (role == Role::kFfnGate || role == Role::kFfnUp) module.out_features = 11008;
      if (role == Role::kFfnDown) module.in_features = 11008;
      module.score = std::count(high.begin(), high.end(), role) != 0 ? 1.0 : 0.0;
      importance.modules.push_back(module);
    }
  }
  return importance;
}

Selection Selected(const Importance& importance, const SelectOptions& options,
                   const LatencyTable& latency = {}) {
  const auto selection = Select(importance, options, latency, "sha");
  EXPECT_TRUE(selection.ok()) << selection.status();
  return selection.ok() ? *selection : Selection();
}

int64_t Parameters(const Importance& importance, const Setting& setting) {
  int64_t sum = 0;
  for (const KeptLayer& layer : setting.keep) {
    for (const ModuleScore& module : importance.modules) {
      if (module.site.layer == layer.layer &&
          std::count(layer.roles.begin(), layer.roles.end(), module.site.role) != 0) {
        sum += layer.rank * (module.in_features + module.out_features);
      }
    }
  }
  return sum;
}

// The table of methods.md 16.4.
TEST(SelectionTest, RanksOfLlama7B) {
  struct Row {
    std::vector<Role> kept;
    int64_t floor_rank, floor_parameters, nearest_rank;
  };
  const Row rows[] = {
      {{std::begin(kRoles), std::end(kRoles)}, 8, 19988480, 8},
      {{Role::kAttnQ, Role::kAttnK}, 38, 19922944, 38},
      {{Role::kAttnQ, Role::kAttnV}, 38, 19922944, 38},
      {{Role::kAttnQ, Role::kAttnK, Role::kFfnUp}, 19, 19144704, 20},
      {{Role::kFfnUp, Role::kFfnDown}, 20, 19333120, 21},
      {{Role::kFfnDown}, 41, 19816448, 41},
  };
  for (const Row& row : rows) {
    const Importance importance = Llama7B(32, row.kept);
    SelectOptions options;
    options.k = static_cast<int64_t>(row.kept.size());
    Selection selection = Selected(importance, options);
    ASSERT_EQ(selection.setting.keep.size(), 32u);
    EXPECT_EQ(selection.setting.keep[31].roles, row.kept);
    EXPECT_EQ(selection.setting.keep[0].rank, row.floor_rank);
    EXPECT_DOUBLE_EQ(selection.setting.keep[0].alpha, 2.0 * static_cast<double>(row.floor_rank));
    EXPECT_EQ(Parameters(importance, selection.setting), row.floor_parameters);
    options.round = "nearest";
    EXPECT_EQ(Selected(importance, options).setting.keep[0].rank, row.nearest_rank);
  }
}

TEST(SelectionTest, RsloraKeepsItsScale) {
  Importance importance = Llama7B(1, {Role::kAttnQ, Role::kAttnK});
  importance.reference->rslora = true;
  SelectOptions options;
  options.k = 2;
  EXPECT_DOUBLE_EQ(Selected(importance, options).setting.keep[0].alpha, 16.0 * std::sqrt(38 / 8.0));
}

TEST(SelectionTest, TiesGoToTheLowerLayerThenTheRoleOrder) {
  const Importance importance = Llama7B(2, {});
  SelectOptions options;
  options.k = 2;
  const Setting by_layer = Selected(importance, options).setting;
  EXPECT_THAT(by_layer.keep[1].roles, ElementsAre(Role::kAttnQ, Role::kAttnK));
  options.rule = "top_k";
  options.k = 8;
  const Setting global = Selected(importance, options).setting;
  EXPECT_EQ(global.keep[0].roles.size(), 7u);
  EXPECT_THAT(global.keep[1].roles, ElementsAre(Role::kAttnQ));
}

TEST(SelectionTest, AFixedRankIsTakenAsItIs) {
  SelectOptions options;
  options.rank = 4;
  Selection selection = Selected(Llama7B(1, {Role::kAttnV}), options);
  EXPECT_EQ(selection.setting.keep[0].rank, 4);
  EXPECT_DOUBLE_EQ(selection.setting.keep[0].alpha, 8.0);
  options.alpha = 3.0;
  EXPECT_DOUBLE_EQ(Selected(Llama7B(1, {}), options).setting.keep[0].alpha, 3.0);
  options = {.rescale = false};
  EXPECT_EQ(Selected(Llama7B(1, {}), options).setting.keep[0].rank, 8);
}

TEST(SelectionTest, RankStaysInsideTheSmallestKeptLinear) {
  Importance importance = Llama7B(2, {Role::kAttnK});
  for (ModuleScore& module : importance.modules) {
    if (module.site.role == Role::kAttnK) module.out_features = 16;
  }
  SelectOptions options;
  options.k = 1;
  const Selection selection = Selected(importance, options);
  EXPECT_EQ(selection.setting.keep[0].rank, 16);
  EXPECT_DOUBLE_EQ(selection.setting.keep[0].alpha, 32.0);
  EXPECT_THAT(selection.warnings, ElementsAre(HasSubstr("it becomes 16")));
}

TEST(SelectionTest, ParameterBudgetSkipsWhatDoesNotFit) {
  Importance importance = Llama7B(1, {});
  importance.modules[0].score = 4.0;   // q: 8,192 x 8 = 65,536 parameters
  importance.modules[4].score = 5.0;   // gate: 15,104 x 8 = 120,832
  importance.modules[6].score = -1.0;  // never
  importance.modules[1].score = 0.5;   // k
  SelectOptions options{.rule = "parameter_budget", .budget = 140000};
  // q has more gain per parameter than gate; gate does not fit behind it, k does.
  Selection selection = Selected(importance, options);
  EXPECT_THAT(selection.setting.keep[0].roles, ElementsAre(Role::kAttnQ, Role::kAttnK));
  EXPECT_EQ(selection.setting.keep[0].rank, 8);
  options.budget = 1e9;
  EXPECT_THAT(Selected(importance, options).setting.keep[0].roles,
              ElementsAre(Role::kAttnQ, Role::kAttnK, Role::kFfnGate))
      << "a gain of 0 is never taken";
  options.budget = 65535;
  const auto none = Select(importance, options, {}, "sha");
  EXPECT_EQ(KindOf(none.status()), ErrorKind::kRecipe);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("keeps no module"));
}

TEST(SelectionTest, TheGainOfAbLeavesTheCommonPartOut) {
  Importance importance = Llama7B(1, {});
  importance.score = "ab";
  for (ModuleScore& module : importance.modules) {
    module.score = -3.0;
    module.terms = {{"loo", 0.0}, {"keep_one", 0.0}};
  }
  importance.modules[2].terms[0].second = 0.5;
  SelectOptions options{.rule = "parameter_budget", .budget = 1e9};
  EXPECT_THAT(Selected(importance, options).setting.keep[0].roles, ElementsAre(Role::kAttnV));
}

TEST(SelectionTest, LatencyCountsASharedInputOnce) {
  Importance importance = Llama7B(1, {});
  importance.modules[0].score = 10.0;  // q
  importance.modules[1].score = 6.0;   // k
  importance.modules[3].score = 7.0;   // o
  const auto table =
      ParseLatencyTable(*ParseJson(R"({"format": "graft-latency", "version": 1, "roles": {
        "attn.q": {"first": 10, "next": 4}, "attn.k": {"first": 10, "next": 4},
        "attn.v": {"first": 10, "next": 4}, "attn.o": {"first": 10, "next": 10},
        "ffn.gate": {"first": 10, "next": 4}, "ffn.up": {"first": 10, "next": 4},
        "ffn.down": {"first": 10, "next": 10}}})",
                                   "latency.json"),
                        "latency.json");
  ASSERT_TRUE(table.ok()) << table.status();
  SelectOptions options{.rule = "latency_budget", .budget = 14.0};
  // Behind q, k costs 4: gain per cost 1.5 against 0.7 of o.
  EXPECT_THAT(Selected(importance, options, *table).setting.keep[0].roles,
              ElementsAre(Role::kAttnQ, Role::kAttnK));
  options.budget = 24.0;
  EXPECT_THAT(Selected(importance, options, *table).setting.keep[0].roles,
              ElementsAre(Role::kAttnQ, Role::kAttnK, Role::kAttnO));
  EXPECT_THAT(std::string(Select(importance, options, {}, "sha").status().message()),
              HasSubstr("has no cost of attn.q"));
}

TEST(SelectionTest, RanksOfALayerSayNothingAboutTheModel) {
  Importance importance = Llama7B(1, {});
  importance.score = "ab_rank";
  const auto selection = Select(importance, {.rule = "top_k"}, {}, "sha");
  EXPECT_EQ(KindOf(selection.status()), ErrorKind::kRecipe);
  EXPECT_THAT(std::string(selection.status().message()), HasSubstr("allowed: top_k_per_layer"));
}

TEST(SelectionTest, UnequalRanksNeedOneFromTheRecipe) {
  Importance importance = Llama7B(1, {});
  importance.reference.reset();
  EXPECT_THAT(std::string(Select(importance, {}, {}, "sha").status().message()),
              HasSubstr("score.select.rank"));
  EXPECT_EQ(Selected(importance, {.rank = 6, .alpha = 12}).setting.keep[0].rank, 6);
}

TEST(SelectionTest, SettingReadsBack) {
  SelectOptions options;
  options.k = 2;
  const std::string text = SettingText(Selected(Llama7B(2, {Role::kAttnK, Role::kFfnUp}), options));
  EXPECT_THAT(text, HasSubstr(R"("selection": {"rule": "top_k_per_layer", "k": 2, "score": "loo", )"
                              R"("reference_rank": 8, "rescale": true, "round": "floor", )"
                              R"("importance_sha256": "sha"})"));
  const auto setting = ParseSetting(*ParseJson(text, "setting.json"), "setting.json");
  ASSERT_TRUE(setting.ok()) << setting.status();
  EXPECT_THAT(setting->keep[1].roles, ElementsAre(Role::kAttnK, Role::kFfnUp));
  EXPECT_EQ(setting->keep[1].rank, 26);
  EXPECT_DOUBLE_EQ(setting->keep[1].alpha, 52.0);
}

}  // namespace
}  // namespace graft::adapters
