// A program of its own: a stop request stays for the life of the process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/signals.h"
#include "tests/testing/status_matchers.h"
#include "tests/trainer/training_run.h"

namespace graft::trainer {
namespace {

using testing::FailsWith;
using testing::TrainingRun;

TEST(StopTest, ARequestSavesTheFinishedStepsAndALaterStartIsStoppedBeforeItTrains) {
  TrainingRun run;
  Recipe recipe = run.NewRecipe("out");
  recipe.optim.steps = 1'000'000;
  recipe.parallel.data = 2;
  std::thread user([&run] {
    while (run.Losses("out").size() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    RequestStop();
  });
  const absl::Status status = TrainingRun::Train(recipe);
  user.join();
  EXPECT_THAT(status, FailsWith(ErrorKind::kStopped, "state saved"));
  const size_t steps = run.Losses("out").size();
  EXPECT_GE(steps, 2u);
  ASSERT_EQ(run.Metrics("out", "checkpoint").size(), 1u);
  EXPECT_EQ(run.Metrics("out", "checkpoint")[0]["step"], steps);

  EXPECT_THAT(TrainingRun::Train(recipe), FailsWith(ErrorKind::kStopped, "nothing was lost"));
  EXPECT_EQ(run.Losses("out").size(), steps);
  EXPECT_EQ(run.Metrics("out", "checkpoint").size(), 1u);
}

}  // namespace
}  // namespace graft::trainer
