#include "base/logging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft {
namespace {

void LogAndFail() {
  InitLogging("logging_test");
  SetLogRank(3);
  LOG(INFO) << "an ordinary line";
  CHECK_EQ(1 + 1, 3) << "numbers are broken";
}

TEST(LoggingDeathTest, AFailedCheckEndsWithTheLastLineAndCode70) {
  EXPECT_EXIT(LogAndFail(), ::testing::ExitedWithCode(70),
              "I ..:..:.. rank 3 logging_test.cc:[0-9]+\\] an ordinary line");
  EXPECT_EXIT(LogAndFail(), ::testing::ExitedWithCode(70),
              "graft: error: bug: logging_test.cc:[0-9]+: Check failed: 1 \\+ 1 == 3 \\(2 vs. 3\\) "
              "numbers are broken");
}

}  // namespace
}  // namespace graft
