#include "trainer/run_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace graft::trainer {
namespace {

TEST(RunStateTest, SixSkipsInARowAreTooMany) {
  RunState state;
  for (int i = 0; i < 5; ++i) state.CountStep(true);
  EXPECT_FALSE(state.TooManySkips());
  state.CountStep(true);
  EXPECT_TRUE(state.TooManySkips());
  EXPECT_EQ(state.step, 6);
  EXPECT_EQ(state.skipped, 6);
  EXPECT_EQ(state.updates, 0);
}

TEST(RunStateTest, ElevenSkipsWithinAThousandStepsAreTooManyAndOldOnesAreForgotten) {
  RunState state;
  const auto run = [&state](int steps) {
    for (int i = 0; i < steps; ++i) state.CountStep(i % 50 == 0);
  };
  run(500);
  EXPECT_EQ(state.recent_skips.size(), 10u);
  EXPECT_FALSE(state.TooManySkips());
  RunState other = state;
  other.CountStep(true);
  EXPECT_TRUE(other.TooManySkips());
  for (int i = 0; i < 1000; ++i) state.CountStep(false);
  EXPECT_TRUE(state.recent_skips.empty());
  EXPECT_EQ(state.skipped, 10);
}

TEST(RunStateTest, OnlyABetterFiniteLossIsTheBest) {
  RunState state;
  state.step = 3;
  EXPECT_FALSE(state.CountEvaluation(std::numeric_limits<double>::quiet_NaN()));
  EXPECT_TRUE(state.CountEvaluation(2.0));
  EXPECT_FALSE(state.CountEvaluation(2.0));
  EXPECT_FALSE(state.CountEvaluation(2.5));
  EXPECT_EQ(state.evaluations_since_best, 2);
  EXPECT_EQ(state.best_step, 3);
  EXPECT_TRUE(state.CountEvaluation(1.0));
  EXPECT_EQ(state.evaluations_since_best, 0);
}

}  // namespace
}  // namespace graft::trainer
