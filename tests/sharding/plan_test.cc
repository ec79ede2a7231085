#include "sharding/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "tests/sharding/shapes.h"

namespace graft::sharding {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TrainableCounts InAllLayers(const models::ModelConfig& config, int64_t each = 10) {
  TrainableCounts counts;
  counts.layers.assign(static_cast<size_t>(config.num_layers), each);
  return counts;
}

TrainableCounts InLayers(const models::ModelConfig& config, const std::vector<int>& layers) {
  TrainableCounts counts = InAllLayers(config, 0);
  for (int layer : layers) counts.layers[static_cast<size_t>(layer)] = 7;
  return counts;
}

PlanOptions Stages(int stages, std::vector<int> split = {}, int chunks = 1) {
  PlanOptions options;
  options.stages = stages;
  options.chunks = chunks;
  options.split = std::move(split);
  return options;
}

std::vector<int> Sizes(const Plan& plan) {
  std::vector<int> sizes;
  for (const StageChunk& part : plan.parts) sizes.push_back(part.num_layers);
  return sizes;
}

Plan MustPlan(const models::ModelConfig& config, const TrainableCounts& counts,
              const PlanOptions& options) {
  absl::StatusOr<Plan> plan = MakePlan(config, counts, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

// performance.md 3.2: efficiency of the best cut.
TEST(Plan, BestCutsOfKnownModels) {
  auto efficiency = [](const models::ModelConfig& config, int stages, std::vector<int> split) {
    return MustPlan(config, InAllLayers(config), Stages(stages, std::move(split))).Efficiency();
  };
  EXPECT_NEAR(efficiency(Llama2_7B(), 4, {}), 0.94, 0.006);
  EXPECT_NEAR(efficiency(Llama2_7B(), 8, {}), 0.88, 0.006);
  EXPECT_NEAR(efficiency(Llama3_8B(), 8, {}), 0.86, 0.006);
  EXPECT_NEAR(efficiency(Llama3_8B(), 8, {4, 4, 4, 4, 4, 4, 4, 4}), 0.67, 0.006);
  EXPECT_NEAR(efficiency(Llama3_70B(), 8, {}), 0.92, 0.006);
}

TEST(Plan, SmallModelGivesItsHeadEightLayersOfRoom) {
  const models::ModelConfig config = SmolLM135M();
  const Plan plan = MustPlan(config, InAllLayers(config), Stages(2));
  EXPECT_THAT(Sizes(plan), ElementsAre(19, 11));
  EXPECT_GT(plan.Efficiency(), 0.99);
}

TEST(Plan, CutIsTheBestOfAllCuts) {
  // All cuts of 9 costs into 3 groups, by enumeration.
  const std::vector<double> costs = {3, 1, 4, 1, 5, 9, 2, 6, 5};
  const double first = 2, last = 7;
  double best = 1e9;
  for (size_t i = 1; i < 8; ++i) {
    for (size_t j = i + 1; j < 9; ++j) {
      double groups[3] = {first, 0, last};
      for (size_t k = 0; k < 9; ++k) groups[k < i ? 0 : k < j ? 1 : 2] += costs[k];
      best = std::min(best, std::max({groups[0], groups[1], groups[2]}));
    }
  }
  const std::vector<int> sizes = CutByCost(costs, first, last, 3);
  ASSERT_EQ(sizes.size(), 3u);
  EXPECT_EQ(sizes[0] + sizes[1] + sizes[2], 9);
  double groups[3] = {first, 0, last};
  size_t layer = 0;
  for (size_t part = 0; part < 3; ++part) {
    for (int i = 0; i < sizes[part]; ++i) groups[part] += costs[layer++];
  }
  EXPECT_EQ(std::max({groups[0], groups[1], groups[2]}), best);
  // Among equal maxima the most even one.
  EXPECT_THAT(CutByCost({1, 1, 1, 1, 1, 1}, 0, 3, 3), ElementsAre(2, 3, 1));
}

TEST(Plan, FrozenPrefixCostsHalf) {
  models::ModelConfig config = Shape(64, 12, 4, 4, 256, 1);
  const Plan plan = MustPlan(config, InLayers(config, {8, 9, 10, 11}), Stages(2));
  EXPECT_EQ(plan.first_trained_layer, 8);
  // 12 layers: eight of cost 1, four of cost 2.
  EXPECT_THAT(Sizes(plan), ElementsAre(8, 4));
  EXPECT_FALSE(plan.parts[0].backward);
  EXPECT_TRUE(plan.parts[1].backward);
  EXPECT_FALSE(plan.parts[1].input_gradient);
}

TEST(Plan, InterleavedPartsWalkOverTheStages) {
  const models::ModelConfig config = Shape(64, 8, 4, 4, 256, 100);
  const Plan plan = MustPlan(config, InAllLayers(config), Stages(2, {1, 2, 3, 2}, 2));
  ASSERT_EQ(plan.parts.size(), 4u);
  EXPECT_EQ(plan.Part(0, 1).first_layer, 3);
  EXPECT_EQ(plan.Part(0, 1).num_layers, 3);
  EXPECT_EQ(plan.Part(1, 1).first_layer, 6);
  EXPECT_TRUE(plan.Part(0, 0).embed);
  EXPECT_FALSE(plan.Part(0, 1).embed);
  EXPECT_TRUE(plan.Part(1, 1).head);
  EXPECT_FALSE(plan.Part(1, 0).head);
}

struct Facts {
  std::vector<bool> trainables, backward, input_gradient;
};
Facts FactsOf(const Plan& plan) {
  Facts facts;
  for (const StageChunk& part : plan.parts) {
    facts.trainables.push_back(part.has_trainables);
    facts.backward.push_back(part.backward);
    facts.input_gradient.push_back(part.input_gradient);
  }
  return facts;
}

TEST(Plan, BoundaryFactsFollowTheLowestTrainable) {
  const models::ModelConfig config = Shape(64, 4, 4, 4, 256, 100);
  for (int k = 0; k < 4; ++k) {
    const Plan plan = MustPlan(config, InLayers(config, {k}), Stages(4, {1, 1, 1, 1}));
    const Facts facts = FactsOf(plan);
    for (int i = 0; i < 4; ++i) {
      const size_t at = static_cast<size_t>(i);
      EXPECT_EQ(facts.trainables[at], i == k);
      EXPECT_EQ(facts.backward[at], i >= k);
      EXPECT_EQ(facts.input_gradient[at], i > k);
    }
    EXPECT_EQ(plan.first_trained_layer, k);
  }
}

TEST(Plan, PromptsHeadsAndNothing) {
  const models::ModelConfig config = Shape(64, 4, 4, 4, 256, 100);
  TrainableCounts prompt = InAllLayers(config, 0);
  prompt.embed = 5;
  Plan plan = MustPlan(config, prompt, Stages(2, {2, 2}));
  EXPECT_THAT(FactsOf(plan).input_gradient, ElementsAre(false, true));
  EXPECT_EQ(plan.first_trained_layer, 0);

  TrainableCounts head = InAllLayers(config, 0);
  head.head = 5;
  plan = MustPlan(config, head, Stages(2, {2, 2}));
  EXPECT_THAT(FactsOf(plan).backward, ElementsAre(false, true));
  EXPECT_THAT(FactsOf(plan).input_gradient, ElementsAre(false, false));
  EXPECT_EQ(plan.first_trained_layer, 4);
  EXPECT_FALSE(plan.StageHasTrainables(0));
  EXPECT_TRUE(plan.StageHasTrainables(1));

  plan = MustPlan(config, InAllLayers(config, 0), Stages(2, {2, 2}));
  EXPECT_THAT(FactsOf(plan).backward, ElementsAre(false, false));
}

TEST(Plan, HashTellsPlansApart) {
  const models::ModelConfig config = Shape(64, 4, 4, 4, 256, 100);
  const Plan plan = MustPlan(config, InAllLayers(config), Stages(2, {2, 2}));
  EXPECT_EQ(plan.Hash(), MustPlan(config, InAllLayers(config), Stages(2, {2, 2})).Hash());
  EXPECT_NE(plan.Hash(), MustPlan(config, InAllLayers(config), Stages(2, {1, 3})).Hash());
  EXPECT_NE(plan.Hash(), MustPlan(config, InLayers(config, {3}), Stages(2, {2, 2})).Hash());
  EXPECT_EQ(plan.Hash().size(), 64u);
}

TEST(Plan, BadRequestsAreRecipeErrors) {
  const models::ModelConfig config = Shape(64, 4, 4, 4, 256, 100);
  auto message = [&](const PlanOptions& options) {
    const absl::StatusOr<Plan> plan = MakePlan(config, InAllLayers(config), options);
    EXPECT_FALSE(plan.ok());
    EXPECT_EQ(KindOf(plan.status()), ErrorKind::kRecipe);
    return std::string(plan.status().message());
  };
  EXPECT_THAT(message(Stages(5)), HasSubstr("5 stages, but the model has only 4 layers"));
  EXPECT_THAT(message(Stages(3, {}, 2)), HasSubstr("3 stages of 2 chunks"));
  EXPECT_THAT(message(Stages(2, {1, 1, 2})),
              HasSubstr("found 3 numbers in [1, 1, 2]; needed are 2"));
  EXPECT_THAT(message(Stages(2, {2, 3})), HasSubstr("sum to 5; the model has 4 layers"));
  EXPECT_THAT(message(Stages(2, {0, 4})), HasSubstr("found 0 in [0, 4]"));
  EXPECT_THAT(message(Stages(2, {-1, 5})), HasSubstr("found -1"));
  EXPECT_THAT(message(Stages(0)), HasSubstr("at least 1"));
}

}  // namespace
}  // namespace graft::sharding
