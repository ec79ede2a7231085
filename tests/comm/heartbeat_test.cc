#include "comm/heartbeat.h"

#include <gtest/gtest.h>

#include <limits>

namespace graft::comm {
namespace {

int64_t g_now = 0;
int64_t TestClock() { return g_now; }
double LimitNow(const Heartbeat& heartbeat) {
  return SecondsOf(heartbeat.deadline_ns() - heartbeat.entered_ns());
}

TEST(Heartbeat, AutomaticLimitsOfThePhases) {
  g_now = NanosOf(1000);
  Heartbeat heartbeat(&TestClock);
  EXPECT_EQ(heartbeat.deadline_ns(), std::numeric_limits<int64_t>::max());
  heartbeat.Enter(Phase::kSetup);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 900);
  heartbeat.Enter(Phase::kSave, 3);
  EXPECT_EQ(heartbeat.step(), 3);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 600);
  heartbeat.Enter(Phase::kExit);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 60);
  heartbeat.Enter(Phase::kIdle);
  EXPECT_EQ(heartbeat.deadline_ns(), std::numeric_limits<int64_t>::max());
}

// First 600 s; then the larger of 60 s and ten medians of the last 100 steps.
TEST(Heartbeat, StepLimitFollowsTheMedian) {
  g_now = NanosOf(1);
  Heartbeat heartbeat(&TestClock);
  heartbeat.Enter(Phase::kStep, 1);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 600);
  g_now += NanosOf(2);
  heartbeat.Enter(Phase::kStep, 2);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 60);
  for (int step = 3; step < 203; ++step) {
    g_now += NanosOf(step % 10 == 0 ? 500 : 9);  // some slow ones do not move the median
    heartbeat.Enter(Phase::kStep, step);
  }
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 90);
  // What lies between steps is no step time.
  heartbeat.Enter(Phase::kSave, 203);
  g_now += NanosOf(400);
  heartbeat.Enter(Phase::kStep, 204);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 90);
}

TEST(Heartbeat, RecipeLimitsWinAndRenewStartsAgain) {
  g_now = NanosOf(1);
  Heartbeat heartbeat(&TestClock);
  heartbeat.set_limits(
      {.setup_seconds = 5, .step_seconds = 6, .save_seconds = 7, .exit_seconds = 8});
  heartbeat.Enter(Phase::kEvaluate, 1);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 5);
  g_now += NanosOf(4);
  heartbeat.Renew();
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 9);
  heartbeat.Enter(Phase::kStep, 1);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 6);
  heartbeat.Enter(Phase::kSave, 1);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 7);
  heartbeat.Enter(Phase::kExit);
  EXPECT_DOUBLE_EQ(LimitNow(heartbeat), 8);
}

}  // namespace
}  // namespace graft::comm
