#include "sharding/step_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/sharding/shapes.h"
#include "tests/testing/status_matchers.h"

namespace graft::sharding {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Plan MustPlan(int stages, int chunks, int first_trained) {
  const models::ModelConfig config = Shape(64, 8, 4, 2, 96, 131);
  TrainableCounts counts;
  counts.layers.assign(8, 0);
  for (int layer = first_trained; layer < 8; ++layer) counts.layers[static_cast<size_t>(layer)] = 5;
  PlanOptions options;
  options.stages = stages;
  options.chunks = chunks;
  auto plan = MakePlan(config, counts, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

TEST(StepPlan, SaysEveryTransferAndReduction) {
  const auto text = CompileStep(MustPlan(2, 1, 0), {ScheduleKind::k1F1B, 3, 2});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, HasSubstr("stage 0: forward 0.0, send to stage 1\n"
                               "stage 0: forward 1.0, send to stage 1\n"
                               "stage 0: backward 0.0, receive from stage 1\n"
                               "stage 0: backward 1.0, receive from stage 1\n"
                               "stage 1: forward 0.0, receive from stage 0\n"
                               "stage 1: backward 0.0, send to stage 0\n"));
  EXPECT_THAT(*text, HasSubstr("gradients over 3 ranks\nall ranks: control vector\n"));
}

// Below the lowest trained layer no gradient travels.
TEST(StepPlan, AFrozenStageGetsNoGradient) {
  const auto text = CompileStep(MustPlan(2, 1, 7), {ScheduleKind::kGPipe, 1, 2});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, Not(HasSubstr("stage 0: backward")));
  EXPECT_THAT(*text, Not(HasSubstr("send to stage 0")));
  EXPECT_THAT(*text, HasSubstr("stage 0: sum of 0 gradients"));
}

// Every send has its receive, and nothing waits for ever, whatever the layout.
TEST(StepPlan, AllLayoutsMatch) {
  for (const int stages : {1, 2, 4}) {
    for (const int chunks : {1, 2}) {
      for (const int trained : {0, 3, 7}) {
        for (const int micro_batches : {stages, 2 * stages, 4 * stages}) {
          for (const ScheduleKind kind :
               {ScheduleKind::kGPipe, ScheduleKind::k1F1B, ScheduleKind::kInterleaved}) {
            if (chunks > 1 && kind != ScheduleKind::kInterleaved) continue;
            EXPECT_THAT(CompileStep(MustPlan(stages, chunks, trained), {kind, 2, micro_batches}),
                        testing::IsOk());
          }
        }
      }
    }
  }
}

TEST(StepPlan, FirstDifferenceNamesTheLine) {
  EXPECT_EQ(FirstDifference("a\nb\n", "a\nb\n"), "");
  EXPECT_EQ(FirstDifference("a\nb\n", "a\nc\n"), "line 2: `b`, the other has `c`");
  EXPECT_EQ(FirstDifference("a", "a\nc"), "line 2: ``, the other has `c`");
}

}  // namespace
}  // namespace graft::sharding
