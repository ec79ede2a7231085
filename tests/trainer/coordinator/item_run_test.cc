// Whole runs on ranks that are threads: every layout gives the bytes of a serial run.
#include "trainer/coordinator/item_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>

#include "base/signals.h"
#include "tests/testing/run_ranks.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"
#include "tests/trainer/coordinator/simulated_run.h"

namespace graft::trainer {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::kRunKey;
using ::graft::testing::MakeItems;
using ::graft::testing::ResultOf;
using ::graft::testing::RunRanks;
using ::graft::testing::SerialResults;
using ::graft::testing::TempFolder;

// Computes on the last stage, as a pipeline does: what a stage passes on is counted by the next.
class FakeRunner : public ItemRunner {
 public:
  explicit FakeRunner(std::function<absl::StatusOr<std::string>(const WorkItem&)> compute)
      : compute_(std::move(compute)) {}
  absl::StatusOr<std::string> Run(const WorkItem& item,
                                  const std::function<void()>& progress) override {
    for (int i = 0; i < 4; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      progress();
    }
    ++items_;
    return compute_(item);
  }
  int items() const { return items_; }

 private:
  const std::function<absl::StatusOr<std::string>(const WorkItem&)> compute_;
  int items_ = 0;
};

absl::StatusOr<std::string> Pure(const WorkItem& item) { return ResultOf(item); }

struct Outcome {
  std::vector<absl::Status> statuses;
  std::vector<std::string> results;
  ItemProgress progress;
  std::atomic<int> computed{0};  // by all replicas
};

void RunLayout(const comm::RankGrid& grid, const std::string& folder,
               const std::vector<WorkItem>& items,
               const std::function<absl::StatusOr<std::string>(const WorkItem&)>& compute,
               Outcome* outcome) {
  std::mutex mutex;
  RunRanks(grid.world(), [&](comm::Communicator& all) {
    comm::World world(all.Split(0, all.rank(), "world"));
    std::unique_ptr<Journal> journal;
    if (world.rank() == 0) journal = ValueOrThrow(Journal::Open(folder, kRunKey));
    FakeRunner runner(compute);
    const absl::StatusOr<ItemRunReport> report =
        RunWorkItems(world, grid, kRunKey, items, journal.get(), runner);
    const std::lock_guard<std::mutex> lock(mutex);
    outcome->statuses.push_back(report.status());
    if (grid.PipelineRank(world.rank()) == 0) outcome->computed += runner.items();
    if (world.rank() != 0 || !report.ok()) return;
    outcome->results = report->results;
    outcome->progress = report->progress;
  });
}

TEST(RunWorkItems, EveryLayoutGivesTheBytesOfASerialRun) {
  const std::vector<WorkItem> items = MakeItems(5, 4);
  for (const comm::RankGrid grid :
       {comm::RankGrid{1, 1}, {2, 1}, {4, 1}, {1, 2}, {2, 2}, {1, 3}, {2, 3}}) {
    SCOPED_TRACE(absl::StrCat(grid.data, "x", grid.pipeline));
    const TempFolder folder;
    Outcome outcome;
    RunLayout(grid, folder.path(), items, &Pure, &outcome);
    EXPECT_THAT(outcome.statuses, ::testing::Each(IsOk()));
    EXPECT_EQ(outcome.results, SerialResults(items));
    EXPECT_EQ(outcome.computed - outcome.progress.repeated, 20);
  }
}

TEST(RunWorkItems, WhatTheJournalHoldsIsNotComputedAgain) {
  const std::vector<WorkItem> items = MakeItems(5, 4);
  const TempFolder folder;
  Outcome first, second, third;
  RunLayout({2, 1}, folder.path(), {items.begin(), items.begin() + 8}, &Pure, &first);
  RunLayout({1, 2}, folder.path(), items, &Pure, &second);
  EXPECT_EQ(second.progress.from_journal, 8);
  EXPECT_EQ(second.computed, 12);
  RunLayout({4, 1}, folder.path(), items, &Pure, &third);
  EXPECT_EQ(third.computed, 0);
  EXPECT_EQ(third.results, SerialResults(items));
}

TEST(RunWorkItems, AnItemWithoutAResultFailsAllRanksAfterTheOthersAreDone) {
  const std::vector<WorkItem> items = MakeItems(3, 3);
  for (const comm::RankGrid grid : {comm::RankGrid{1, 1}, {2, 1}, {2, 2}}) {
    const TempFolder folder;
    Outcome outcome;
    RunLayout(
        grid, folder.path(), items,
        [&](const WorkItem& item) -> absl::StatusOr<std::string> {
          if (item.first_sample == 32 && item.first_layer == 4) return NumericError("nan here");
          return ResultOf(item);
        },
        &outcome);
    EXPECT_THAT(outcome.statuses,
                ::testing::Each(FailsWith(ErrorKind::kNumeric, "layers 4-7, samples 32-63")));
    const auto journal = Journal::Open(folder.path(), kRunKey);
    EXPECT_EQ((*journal)->num_results(), 8);
  }
}

TEST(RunWorkItems, RanksWithOtherItemsAreFound) {
  const TempFolder folder;
  RunRanks(2, [&](comm::Communicator& all) {
    comm::World world(all.Split(0, all.rank(), "world"));
    FakeRunner runner(&Pure);
    EXPECT_THAT(RunWorkItems(world, {2, 1}, kRunKey, MakeItems(2, 2 + all.rank()), nullptr, runner),
                FailsWith(ErrorKind::kBug, "rank 1 has other work items"));
  });
}

TEST(RunWorkItems, AnExceptionOfARunnerIsThrown) {
  const TempFolder folder;
  Outcome outcome;
  EXPECT_THROW(RunLayout(
                   {2, 1}, folder.path(), MakeItems(2, 2),
                   [](const WorkItem&) -> absl::StatusOr<std::string> {
                     throw StatusError(PeerError("the replica broke"));
                   },
                   &outcome),
               StatusError);
}

// Last: the request stays.
TEST(RunWorkItems, AStopRequestKeepsWhatIsDone) {
  const std::vector<WorkItem> items = MakeItems(10, 10);
  const TempFolder folder;
  std::atomic<int> computed{0};
  Outcome outcome;
  RunLayout(
      {2, 2}, folder.path(), items,
      [&](const WorkItem& item) -> absl::StatusOr<std::string> {
        if (++computed == 12) RequestStop();
        return ResultOf(item);
      },
      &outcome);
  EXPECT_THAT(outcome.statuses, ::testing::Each(FailsWith(ErrorKind::kStopped, "of 100 items")));
  const auto journal = Journal::Open(folder.path(), kRunKey);
  EXPECT_GE((*journal)->num_results(), 3);
  EXPECT_LT((*journal)->num_results(), 40);
}

}  // namespace
}  // namespace graft::trainer
