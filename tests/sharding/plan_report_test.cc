#include "sharding/plan_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/sharding/shapes.h"

namespace graft::sharding {
namespace {

using ::testing::HasSubstr;

struct Case {
  models::ModelConfig config = SmolLM135M();
  Plan plan;
  PlanWork work;
};

Case SmolOnTwoStages() {
  Case c;
  TrainableCounts counts;
  counts.layers.assign(30, 81408);  // LoRA r 8 on all linears
  PlanOptions options;
  options.stages = 2;
  options.sequence_length = 256;
  c.plan = *MakePlan(c.config, counts, options);
  c.work.micro_batches = 8;
  c.work.shape.micro_batch_tokens = 256;
  c.work.sequence_length = 256;
  c.work.flop_per_second = 100e9;
  return c;
}

TEST(PlanReport, WorkEqualsTheCostModel) {
  const Case c = SmolOnTwoStages();
  const PlanEstimate estimate = *EstimatePlan(c.config, c.plan, c.work);
  WorkShape shape;
  shape.sequence_length = 256;
  shape.adapter_parameters = 2442240;
  const double per_token = TrainingFlopPerToken(c.config, shape);
  EXPECT_NEAR(estimate.flop_per_token, per_token, 1e-6 * per_token);
  EXPECT_NEAR(estimate.step_flop, per_token * 8 * 256, 1e-6 * estimate.step_flop);
}

TEST(PlanReport, NearlyBalancedStagesHaveNearlyTheBubbleOfTheFormula) {
  const Case c = SmolOnTwoStages();
  const PlanEstimate estimate = *EstimatePlan(c.config, c.plan, c.work);
  EXPECT_NEAR(estimate.bubble_fraction, 1.0 / 9, 0.03);
  EXPECT_NEAR(estimate.step_seconds,
              estimate.step_flop / 2 / 100e9 / (1 - estimate.bubble_fraction), 1e-9);
}

TEST(PlanReport, AFrozenPromptEncoderLiesOnTheFirstStage) {
  Case c = SmolOnTwoStages();
  c.work.shape.packed_twice = true;
  const PlanEstimate without = *EstimatePlan(c.config, c.plan, c.work);
  c.work.encoder_parameters = 1000000;
  const PlanEstimate with = *EstimatePlan(c.config, c.plan, c.work);
  EXPECT_EQ(with.stages[0].frozen_parameters - without.stages[0].frozen_parameters, 1000000);
  EXPECT_EQ(with.stages[0].memory.frozen - without.stages[0].memory.frozen, 4e6);
  c.work.encoder_packed_parameters = 900000;
  EXPECT_EQ(EstimatePlan(c.config, c.plan, c.work)->stages[0].memory.frozen -
                with.stages[0].memory.frozen,
            4 * 9e5);
  EXPECT_EQ(with.stages[1].memory.total(), without.stages[1].memory.total());
}

TEST(PlanReport, APromptEncoderAddsItsWork) {
  Case c = SmolOnTwoStages();
  const PlanEstimate without = *EstimatePlan(c.config, c.plan, c.work);
  c.work.encoder_forward_flop = 1e9;
  c.work.encoder_backward_flop = 3e9;
  const PlanEstimate with = *EstimatePlan(c.config, c.plan, c.work);
  EXPECT_NEAR(with.step_flop - without.step_flop, 8 * 4e9, 1e-6 * with.step_flop);
  EXPECT_EQ(with.stages[1].flop, without.stages[1].flop);
}

TEST(PlanReport, WhatEditsKeepLiesWhereTheirLayersAre) {
  Case c = SmolOnTwoStages();
  const PlanEstimate without = *EstimatePlan(c.config, c.plan, c.work);
  c.work.kept_per_row.assign(31, 0);  // the last one: sites of no layer
  c.work.kept_per_row[0] = 8;
  c.work.kept_per_row[30] = 1000;
  const PlanEstimate with = *EstimatePlan(c.config, c.plan, c.work);
  // Two micro-batches are in flight there.
  EXPECT_EQ(with.stages[0].memory.activations - without.stages[0].memory.activations,
            2 * 256.0 * 8 * 4);
  EXPECT_EQ(with.stages[1].memory.activations, without.stages[1].memory.activations);
}

TEST(PlanReport, TheProgramCountsOnEveryRank) {
  Case c = SmolOnTwoStages();
  const PlanEstimate without = *EstimatePlan(c.config, c.plan, c.work);
  c.work.shape.base_bytes = 1e8;
  const PlanEstimate with = *EstimatePlan(c.config, c.plan, c.work);
  for (size_t i = 0; i < 2; ++i)
    EXPECT_EQ(with.stages[i].memory.total() - without.stages[i].memory.total(), 1e8);
  EXPECT_EQ(with.LargestMemory(),
            std::max(with.stages[0].memory.total(), with.stages[1].memory.total()));
}

TEST(PlanReport, ParametersOfTheStages) {
  const Case c = SmolOnTwoStages();
  const PlanEstimate estimate = *EstimatePlan(c.config, c.plan, c.work);
  ASSERT_EQ(estimate.stages.size(), 2u);
  EXPECT_EQ(estimate.stages[0].trainable_parameters + estimate.stages[1].trainable_parameters,
            2442240);
  // The tied table lies on both ends.
  EXPECT_EQ(estimate.stages[0].frozen_parameters + estimate.stages[1].frozen_parameters,
            134515008 + 576 * 49152);
  EXPECT_EQ(estimate.stages[0].in_flight, 2);
  EXPECT_EQ(estimate.stages[1].in_flight, 1);
}

TEST(PlanReport, TableNamesEverything) {
  Case c = SmolOnTwoStages();
  const PlanEstimate estimate = *EstimatePlan(c.config, c.plan, c.work);
  const std::string text = RenderPlan(c.config, c.plan, c.work, estimate);
  EXPECT_THAT(text, HasSubstr("1 data x 2 pipeline, schedule 1f1b, 8 micro-batches of 256 tokens"));
  EXPECT_THAT(text, HasSubstr("2442240 trainable of 134515008 frozen"));
  EXPECT_THAT(text, HasSubstr("embed+0-"));
  EXPECT_THAT(text, HasSubstr("-29+head"));
  EXPECT_THAT(text, HasSubstr("bubble"));
  EXPECT_THAT(text, HasSubstr("predicted at 100 GFLOP/s"));
  c.work.flop_per_second = 0;
  EXPECT_THAT(RenderPlan(c.config, c.plan, c.work, *EstimatePlan(c.config, c.plan, c.work)),
              testing::Not(HasSubstr("predicted")));
}

}  // namespace
}  // namespace graft::sharding
