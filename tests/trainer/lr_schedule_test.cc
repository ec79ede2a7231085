#include "trainer/lr_schedule.h"

#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"

namespace graft::trainer {
namespace {

// Expected rates: transformers 5.17, a torch SGD with lr 1e-3 under
// get_NAME_schedule_with_warmup(optimizer, WARMUP, TOTAL), the value of param_groups[0]["lr"]
// before each step.
struct Case {
  const char* name;
  LrSchedule schedule;
  std::vector<double> rates;
};

const Case kCases[] = {
    {"constant",
     {LrDecay::kConstant, 1e-3, 3, 10},
     {0.0, 0.0003333333333333333, 0.0006666666666666666, 0.001, 0.001, 0.001}},
    {"linear",
     {LrDecay::kLinear, 1e-3, 3, 10},
     {0.0, 0.0003333333333333333, 0.0006666666666666666, 0.001, 0.0008571428571428571,
      0.0007142857142857143, 0.0005714285714285714, 0.00042857142857142855, 0.0002857142857142857,
      0.00014285714285714284, 0.0, 0.0}},
    {"linear without warm-up",
     {LrDecay::kLinear, 1e-3, 0, 4},
     {0.001, 0.00075, 0.0005, 0.00025, 0.0}},
    {"cosine",
     {LrDecay::kCosine, 1e-3, 3, 10},
     {0.0, 0.0003333333333333333, 0.0006666666666666666, 0.001, 0.0009504844339512095,
      0.0008117449009293668, 0.0006112604669781572, 0.00038873953302184284, 0.00018825509907063325,
      4.9515566048790485e-05, 0.0, 4.951556604879043e-05}},
    {"cosine without warm-up",
     {LrDecay::kCosine, 1e-3, 0, 4},
     {0.001, 0.0008535533905932737, 0.0005, 0.00014644660940672628, 0.0}},
};

TEST(LrScheduleTest, EqualsTransformers) {
  for (const Case& row : kCases) {
    for (size_t step = 0; step < row.rates.size(); ++step) {
      EXPECT_NEAR(row.schedule.Rate(static_cast<int64_t>(step)), row.rates[step], 1e-17)
          << row.name << " step " << step;
    }
  }
}

TEST(LrScheduleTest, WarmUpLongerThanTheRunNeverReachesThePeak) {
  const LrSchedule schedule{LrDecay::kLinear, 1.0, 100, 10};
  EXPECT_DOUBLE_EQ(schedule.Rate(10), 0.1);
}

TEST(LrScheduleTest, ParseRefusesUnknownNames) {
  EXPECT_EQ(ParseLrDecay("cosine").value(), LrDecay::kCosine);
  const absl::Status status = ParseLrDecay("polynomial").status();
  EXPECT_EQ(KindOf(status), ErrorKind::kRecipe);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("constant, linear, cosine"));
}

}  // namespace
}  // namespace graft::trainer
