// C1 of reliability.md 8: whatever happens to workers, messages and the coordinator, the results
// are those of a serial run, and without faults nothing is computed twice. --long on the command
// line: the full counts.
#include "trainer/coordinator/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/testing/fault_io.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"
#include "tests/trainer/coordinator/simulated_run.h"

namespace graft::trainer {
namespace {

using ::graft::testing::AddFaults;
using ::graft::testing::CleanRun;
using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::kRunKey;
using ::graft::testing::ResultOf;
using ::graft::testing::SerialResults;
using ::graft::testing::TempFolder;

bool g_long = false;
int Rounds(int brief, int full) { return g_long ? full : brief; }

// Fails at the first event at which an item is lost, a result changes or a count goes back.
class Invariants {
 public:
  explicit Invariants(const std::vector<WorkItem>& items) : serial_(SerialResults(items)) {}
  void Check(const Coordinator& coordinator) {
    ASSERT_EQ(coordinator.table().CheckInvariants(), "");
    for (int item = 0; item < coordinator.table().size(); ++item) {
      const bool done = coordinator.table().state(item) == ItemState::kDone;
      const std::string& result = coordinator.results()[static_cast<size_t>(item)];
      ASSERT_EQ(result, done ? serial_[static_cast<size_t>(item)] : "") << "item " << item;
    }
  }

 private:
  const std::vector<std::string> serial_;
};

// Dies at chosen fsyncs of the journal: half of the times before it, with half of what was written
// lost, half of the times after it, when nobody was told yet.
class CrashingIo : public IoCalls {
 public:
  // First: the number of the record after whose write the crash comes; each later one `every`
  // records on (0 = once).
  CrashingIo(int64_t first, int64_t every) : next_(first), every_(every) {}
  ssize_t Write(int fd, const void* data, std::size_t size) override {
    const bool torn = armed_ && count_ == next_ && next_ % 2 == 0;
    const ssize_t written = IoCalls::Write(fd, data, torn ? size / 2 : size);
    if (torn) Crash();
    return written;
  }
  int Fsync(int) override {  // a simulation need not wait for a disk
    if (armed_ && count_++ == next_) Crash();
    return 0;
  }
  // The journal of a starting coordinator is opened in peace: what it writes is no result.
  void set_armed(bool armed) { armed_ = armed; }

 private:
  void Crash() {
    next_ = every_ > 0 ? count_ + every_ : -1;
    throw SimulatedCrash();
  }
  int64_t next_;
  const int64_t every_;
  int64_t count_ = 0;
  bool armed_ = false;
};

struct CrashingRun {
  TempFolder folder;
  CrashingIo io;
  ::graft::testing::ScopedIo scoped{&io};
  CrashingRun(int64_t first, int64_t every, SimulationOptions* options) : io(first, every) {
    options->open_log = [this] {
      io.set_armed(false);
      auto journal = Journal::Open(folder.path(), kRunKey);
      EXPECT_THAT(journal, IsOk());
      io.set_armed(true);
      return std::move(*journal);
    };
  }
};

TEST(Simulation, WithoutFaultsNothingIsComputedTwiceAndWorkersAreBusy) {
  for (const int workers : {1, 2, 7, 100}) {
    SimulationOptions options = CleanRun(workers, 50, 20);
    const SimulationReport report = Simulate(options);
    ASSERT_THAT(report.status, IsOk());
    EXPECT_EQ(report.results, SerialResults(options.items));
    EXPECT_LE(report.extra_work(), 0.0001) << workers;
    // What is lost: the start, and the last items of the run.
    EXPECT_LE(report.seconds, report.total_cost / workers * 1.02 + 15) << workers;
  }
}

TEST(Simulation, WorkersOfDifferentSpeedEndTogether) {
  SimulationOptions options = CleanRun(20, 50, 20);
  double speed = 0;
  for (size_t i = 0; i < options.workers.size(); ++i) {
    options.workers[i].speed = i % 2 == 0 ? 1 : 4;
    speed += options.workers[i].speed;
  }
  const SimulationReport report = Simulate(options);
  ASSERT_THAT(report.status, IsOk());
  EXPECT_LE(report.seconds, report.total_cost / speed + 30);
  EXPECT_LE(report.extra_work(), 0.05);
}

TEST(Simulation, ASlowNetworkWithoutLossCostsAtMostFivePercent) {
  SimulationOptions options = CleanRun(100, 50, 20);
  options.network = {.least_delay = 0.1, .most_delay = 2, .loss = 0, .doubling = 0};
  const SimulationReport report = Simulate(options);
  ASSERT_THAT(report.status, IsOk());
  EXPECT_LE(report.extra_work(), 0.05);
}

TEST(Simulation, LongItemsKeepTheirLeasesAndAreNotRepeated) {
  // A sign of work every few minutes; five items for each worker, three of which it holds before
  // any speed is known.
  for (const auto& [workers, shards] : {std::pair(20, 10), std::pair(100, 25)}) {
    SimulationOptions options = CleanRun(workers, shards, 20);
    for (WorkItem& item : options.items) item.cost *= 200;
    for (size_t i = 0; i < options.workers.size(); ++i) {
      options.workers[i].speed = 1 + 0.01 * static_cast<double>(i % 10);
    }
    const SimulationReport report = Simulate(options);
    ASSERT_THAT(report.status, IsOk());
    EXPECT_LE(report.extra_work(), 0.02) << workers;
  }
}

TEST(Simulation, HalfOfTheWorkersDieAndMessagesAreLostDoubledReordered) {
  for (int seed = 0; seed < Rounds(10, 1000); ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    SimulationOptions options = CleanRun(100, 20, 10);
    AddFaults(&options, static_cast<uint64_t>(seed), 60);
    Invariants invariants(options.items);
    options.at_event = [&](const Coordinator& c) { invariants.Check(c); };
    const SimulationReport report = Simulate(options);
    ASSERT_THAT(report.status, IsOk());
    EXPECT_EQ(report.results, SerialResults(options.items));
    if (HasFatalFailure()) return;
  }
}

TEST(Simulation, TheCoordinatorCrashesOnceAtEachRecord) {
  for (int record = 0; record < Rounds(50, 1000); ++record) {
    SCOPED_TRACE(absl::StrCat("crash at record ", record));
    SimulationOptions options = g_long ? CleanRun(100, 50, 20) : CleanRun(100, 20, 10);
    AddFaults(&options, static_cast<uint64_t>(record), g_long ? 200 : 40);
    // Each result gets a record of its own.
    options.coordinator.sync_seconds = 0;
    options.poll_seconds = 0.05;
    CrashingRun run(record, 0, &options);
    const SimulationReport report = Simulate(options);
    ASSERT_THAT(report.status, IsOk());
    EXPECT_EQ(report.restarts, 1);
    EXPECT_EQ(report.results, SerialResults(options.items));
  }
}

TEST(Simulation, TheCoordinatorCrashesAtEveryRecordOfOneRun) {
  SimulationOptions options = CleanRun(100, Rounds(5, 50), Rounds(10, 20));
  AddFaults(&options, 1, 100);
  options.coordinator.sync_seconds = 0;
  options.poll_seconds = 0.05;
  options.restart_seconds = 0.1;
  // Two records apart: a crash before its fsync must not meet the same result for ever.
  CrashingRun run(0, 2, &options);
  const SimulationReport report = Simulate(options);
  ASSERT_THAT(report.status, IsOk());
  EXPECT_GE(report.restarts, static_cast<int64_t>(options.items.size()) / 10);
  EXPECT_EQ(report.results, SerialResults(options.items));
}

TEST(Simulation, AWorkerThatComesBackAfterALongStallIsHeard) {
  SimulationOptions options = CleanRun(2, 4, 2);
  options.workers[1].faults = {{5, SimulatedFault::Kind::kStall, 1000}};
  const SimulationReport report = Simulate(options);
  ASSERT_THAT(report.status, IsOk());
  EXPECT_EQ(report.results, SerialResults(options.items));
  // Not long after the other worker has heard nothing of it for a lease's time.
  EXPECT_LT(report.seconds, 700);
}

TEST(Simulation, AllWorkersButOneDie) {
  SimulationOptions options = CleanRun(10, 4, 4);
  for (size_t i = 1; i < 10; ++i) options.workers[i].faults = {{5, SimulatedFault::Kind::kDie, 0}};
  const SimulationReport report = Simulate(options);
  ASSERT_THAT(report.status, IsOk());
  EXPECT_EQ(report.results, SerialResults(options.items));
}

TEST(Simulation, AnItemThatFailsEverywhereIsGivenUpAndTheOthersAreDone) {
  for (const int workers : {1, 2, 10}) {
    SimulationOptions options = CleanRun(workers, 4, 4);
    std::map<int, int> tries;
    options.compute = [&](const WorkItem& item, int worker) -> absl::StatusOr<std::string> {
      if (item.first_sample != 32 || item.first_layer != 4) return ResultOf(item);
      ++tries[worker];
      return NumericError("sample 35: the loss is nan");
    };
    const SimulationReport report = Simulate(options);
    EXPECT_THAT(report.status, FailsWith(ErrorKind::kNumeric, "loo of layers 4-7, samples 32-63"));
    EXPECT_THAT(report.status, FailsWith(ErrorKind::kNumeric, "sample 35: the loss is nan"));
    EXPECT_EQ(report.progress.done, 15);
    EXPECT_EQ(report.progress.quarantined, 1);
    EXPECT_GE(tries.size(), workers > 1 ? 2u : 1u);
  }
}

TEST(Simulation, AnItemThatFailsOnOneWorkerIsDoneByAnother) {
  SimulationOptions options = CleanRun(3, 4, 4);
  options.compute = [&](const WorkItem& item, int worker) -> absl::StatusOr<std::string> {
    if (worker == 1) return BugError("out of memory");
    return ResultOf(item);
  };
  const SimulationReport report = Simulate(options);
  ASSERT_THAT(report.status, IsOk());
  EXPECT_EQ(report.results, SerialResults(options.items));
}

}  // namespace
}  // namespace graft::trainer

int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  ::setenv("TMPDIR", "/dev/shm", 1);  // the journals of thousands of crashes need no disk
  graft::trainer::g_long = argc > 1 && std::strcmp(argv[1], "--long") == 0;
  return RUN_ALL_TESTS();
}
