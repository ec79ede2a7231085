#include "sharding/start_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::sharding {
namespace {

using ::graft::testing::IsOk;
using ::graft::testing::TempFolder;

TEST(StartLog, NumbersTheStartsAndKeepsWhatTheyCommitted) {
  const TempFolder temp;
  StartLog first = ValueOrThrow(StartLog::Open(temp.path()));
  EXPECT_EQ(first.number(), 1);
  ASSERT_THAT(first.Begin(0), IsOk());
  ASSERT_THAT(first.Committed(10), IsOk());
  ASSERT_THAT(first.Committed(20), IsOk());
  StartLog second = ValueOrThrow(StartLog::Open(temp.path()));
  EXPECT_EQ(second.number(), 2);
  ASSERT_THAT(second.Begin(20), IsOk());
  ASSERT_THAT(second.EndedOrderly(), IsOk());
  EXPECT_EQ(temp.Read("starts.jsonl"),
            "{\"start\":1,\"from_step\":0,\"committed_step\":20}\n"
            "{\"start\":2,\"from_step\":20,\"committed_step\":null,\"orderly\":true}\n");
}

TEST(StartLog, TwoStartsThatLedNowhereAreNoticed) {
  const TempFolder temp;
  for (int i = 0; i < 2; ++i) {
    StartLog log = ValueOrThrow(StartLog::Open(temp.path()));
    EXPECT_FALSE(log.LooksStuck(30));
    ASSERT_THAT(log.Begin(30), IsOk());
  }
  EXPECT_TRUE(ValueOrThrow(StartLog::Open(temp.path())).LooksStuck(30));
  EXPECT_FALSE(ValueOrThrow(StartLog::Open(temp.path())).LooksStuck(40));
  StartLog log = ValueOrThrow(StartLog::Open(temp.path()));
  ASSERT_THAT(log.Begin(30), IsOk());
  ASSERT_THAT(log.EndedOrderly(), IsOk());
  EXPECT_FALSE(ValueOrThrow(StartLog::Open(temp.path())).LooksStuck(30));
}

TEST(StartLog, ADamagedLineIsPassedOver) {
  const TempFolder temp;
  temp.Write("starts.jsonl",
             "{\"start\":4,\"from_step\":1,\"committed_step\":2}\n{\"start\":\n[]\n");
  EXPECT_EQ(ValueOrThrow(StartLog::Open(temp.path())).number(), 5);
}

}  // namespace
}  // namespace graft::sharding
