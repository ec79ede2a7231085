#include "sharding/save_advice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::sharding {
namespace {

TEST(SaveAdvice, TheIntervalIsTheBestOne) {
  const double stall = 0.05, mttf = 4 * 3600;
  const SaveAdvice advice = AdviseSaves(stall, mttf);
  EXPECT_NEAR(advice.interval_seconds, 37.947, 1e-3);
  EXPECT_NEAR(advice.overhead, 0.05 / 37.947 + 37.947 / 28800 + 10 / 14400.0, 1e-7);
  // No other interval loses less.
  for (const double interval : {20.0, 30.0, 45.0, 80.0}) {
    EXPECT_GT(stall / interval + interval / (2 * mttf) + 10 / mttf, advice.overhead);
  }
}

TEST(SaveAdvice, TheLineSaysSizeAndSteps) {
  const std::string line = SaveAdviceLine(1 << 20, 1, 2.0);
  EXPECT_THAT(line, ::testing::StartsWith("save        12.0 MiB a checkpoint, 8 ms of stall"));
  EXPECT_THAT(line, ::testing::HasSubstr("for one failure in 4 h save every 15 s = "
                                         "checkpoint.every 8 ("));
  EXPECT_THAT(SaveAdviceLine(1 << 20, 1, 0), ::testing::Not(::testing::HasSubstr("checkpoint.")));
  EXPECT_LT(PredictedStall(1 << 20), PredictedStall(1 << 24));
}

}  // namespace
}  // namespace graft::sharding
