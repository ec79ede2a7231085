#include "trainer/health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace graft::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(StragglerWatch, NamesARankAfterTwentySlowStepsOnce) {
  StragglerWatch watch;
  for (int step = 1; step <= 100; ++step) {
    const std::vector<int> found = watch.Add({1.0, 1.1, 1.31 * 1.05, 1.0});
    if (step == 20) {
      EXPECT_THAT(found, ElementsAre(2));
    } else {
      EXPECT_THAT(found, IsEmpty()) << step;
    }
  }
}

TEST(StragglerWatch, AQuickStepInBetweenStartsTheCountAgain) {
  StragglerWatch watch;
  for (int step = 1; step <= 200; ++step) {
    EXPECT_THAT(watch.Add({1, 1, step % 20 == 0 ? 1.0 : 5.0}), IsEmpty());
  }
}

TEST(StragglerWatch, OneRankIsNoStraggler) {
  StragglerWatch watch;
  for (int step = 1; step <= 50; ++step) EXPECT_THAT(watch.Add({7}), IsEmpty());
}

TEST(LossSpikeWatch, FindsAJumpAndNotTheNoise) {
  LossSpikeWatch watch;
  for (int step = 0; step < 500; ++step) {
    const double noise = 0.1 * std::sin(step * 12.9898);
    EXPECT_FALSE(watch.Add(4 * std::exp(-step / 300.0) + noise).has_value()) << step;
  }
  const auto spike = watch.Add(10);
  ASSERT_TRUE(spike.has_value());
  EXPECT_GT(*spike, LossSpikeWatch::kSigmas);
  EXPECT_TRUE(watch.Add(10).has_value()) << "one spike does not hide the next";
  EXPECT_FALSE(watch.Add(std::numeric_limits<double>::quiet_NaN()).has_value());
}

TEST(LossSpikeWatch, TheFirstTwentyLossesAreNeverASpike) {
  LossSpikeWatch watch;
  for (int step = 0; step < 20; ++step) EXPECT_FALSE(watch.Add(step == 15 ? 1e9 : 1).has_value());
}

// Feeds `count` steps of a second each; returns what the last one found.
std::optional<double> AddSteps(LeadWatch& watch, int count) {
  std::optional<double> needed;
  for (int step = 0; step < count; ++step) needed = watch.AddStep(1);
  return needed;
}

TEST(LeadWatch, WarnsOnceAtTheTwentiethStep) {
  LeadWatch watch(120);
  EXPECT_FALSE(watch.AddStep(50).has_value());
  EXPECT_FALSE(watch.AddSave(11).has_value());
  EXPECT_FALSE(AddSteps(watch, 18).has_value());
  EXPECT_EQ(watch.AddStep(1), 2 * (50 + 11));
  EXPECT_FALSE(watch.AddStep(500).has_value());
}

TEST(LeadWatch, ALaterSaveOrStepCountsToo) {
  LeadWatch watch(120);
  EXPECT_FALSE(AddSteps(watch, 40).has_value());
  EXPECT_FALSE(watch.AddSave(59).has_value()) << "twice 60 s are covered";
  EXPECT_EQ(watch.AddSave(60), 122);
  LeadWatch other(120);
  EXPECT_FALSE(AddSteps(other, 40).has_value());
  EXPECT_EQ(other.AddStep(61), 122);
}

TEST(LeadWatch, AnUnknownLeadIsNeverTooShort) {
  LeadWatch watch(0);
  EXPECT_FALSE(watch.AddSave(1000).has_value());
  EXPECT_FALSE(AddSteps(watch, 100).has_value());
}

TEST(GradientWatch, KnowsWhatNeverHadAGradient) {
  GradientWatch watch(3);
  watch.Add({true, false, false});
  watch.Add({false, false, true});
  EXPECT_TRUE(watch.watching());
  watch.Add({false, false, false});
  EXPECT_FALSE(watch.watching());
  EXPECT_THAT(watch.Dead(), ElementsAre(1));
}

}  // namespace
}  // namespace graft::trainer
