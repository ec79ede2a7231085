#include "base/background_task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "base/status.h"
#include "tests/testing/status_matchers.h"

namespace graft {
namespace {

using testing::FailsWith;
using testing::IsOk;

TEST(BackgroundTaskTest, JobsRunOneAfterTheOtherAndHandOverWhatTheyWrote) {
  BackgroundTask task;
  std::vector<int> numbers;
  for (int i = 0; i < 50; ++i) {
    task.Start([&numbers, i] {
      numbers.push_back(i);
      return absl::OkStatus();
    });
    EXPECT_TRUE(task.active());
    while (!task.finished()) std::this_thread::yield();
    EXPECT_FALSE(task.failed());
    EXPECT_THAT(task.Take(), IsOk());
    EXPECT_FALSE(task.active());
    EXPECT_EQ(numbers.back(), i);
  }
}

TEST(BackgroundTaskTest, ErrorsAndExceptionsAreItsResult) {
  BackgroundTask task;
  task.Start([] { return IoError("disk full"); });
  while (!task.finished()) std::this_thread::yield();
  EXPECT_TRUE(task.failed());
  EXPECT_THAT(task.Take(), FailsWith(ErrorKind::kIo, "disk full"));
  task.Start([]() -> absl::Status { throw std::runtime_error("odd"); });
  EXPECT_THAT(task.Take(), FailsWith(ErrorKind::kBug, "odd"));
}

TEST(BackgroundTaskTest, IsJoinedWhenItGoes) {
  std::atomic<bool> done{false};
  {
    BackgroundTask task;
    task.Start([&done] {
      done = true;
      return absl::OkStatus();
    });
  }
  EXPECT_TRUE(done);
}

}  // namespace
}  // namespace graft
