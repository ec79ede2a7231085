// A scoring job without a model for the chaos tests: items that take a while and whose results are
// numbers made from them, over all ranks.
//
//   chaos_items OUTPUT ITEMS MILLISECONDS PIPELINE
//
// Ranks = replicas x PIPELINE. An item lasts MILLISECONDS on each stage. OUTPUT holds the journal
// and, once all is done, results.bin. Rank 0 prints "computed N of ITEMS items in S s, coordinator
// C s".
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/logging.h"
#include "base/signals.h"
#include "base/status.h"
#include "comm/agree.h"
#include "comm/world.h"
#include "launch/guard.h"
#include "trainer/coordinator/item_run.h"

namespace graft::testing {
namespace {

constexpr int kMicroBatches = 8;

struct Job {
  std::string output;
  int items = 0, milliseconds = 0, pipeline = 1;
};

absl::StatusOr<Job> ReadArguments(int argc, char** argv) {
  Job job;
  if (argc != 5 || !absl::SimpleAtoi(argv[2], &job.items) ||
      !absl::SimpleAtoi(argv[3], &job.milliseconds) || !absl::SimpleAtoi(argv[4], &job.pipeline)) {
    return UsageError("chaos_items OUTPUT ITEMS MILLISECONDS PIPELINE");
  }
  job.output = argv[1];
  return job;
}

class Sleeper : public trainer::ItemRunner {
 public:
  explicit Sleeper(int milliseconds) : nap_(1000 * milliseconds / kMicroBatches) {}
  absl::StatusOr<std::string> Run(const trainer::WorkItem& item,
                                  const std::function<void()>& progress) override {
    for (int i = 0; i < kMicroBatches; ++i) {
      std::this_thread::sleep_for(nap_);
      progress();
    }
    return Sha256Hex(trainer::ItemName(item));
  }

 private:
  const std::chrono::microseconds nap_;
};

absl::Status Run(const Job& job, comm::World& world) {
  std::vector<trainer::WorkItem> items;
  for (int i = 0; i < job.items; ++i) items.push_back({"loo", 32 * i, 32, 0, 4, 4, 1.0 + i % 3});
  const std::string run_key = Sha256Hex("chaos");
  std::unique_ptr<trainer::Journal> journal;
  absl::Status status;
  if (world.rank() == 0) {
    auto opened = trainer::Journal::Open(job.output, run_key);
    status = opened.status();
    if (opened.ok()) journal = *std::move(opened);
  }
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(world.all(), status));
  Sleeper sleeper(job.milliseconds);
  const comm::RankGrid grid{world.size() / job.pipeline, job.pipeline};
  GRAFT_ASSIGN_OR_RETURN(
      const trainer::ItemRunReport report,
      trainer::RunWorkItems(world, grid, run_key, items, journal.get(), sleeper));
  if (world.rank() > 0) return absl::OkStatus();
  std::string all;
  for (const std::string& result : report.results) absl::StrAppend(&all, result, "\n");
  std::printf("computed %ld of %ld items in %.3f s, coordinator %.4f s\n",
              static_cast<long>(report.progress.done - report.progress.from_journal),
              static_cast<long>(report.progress.items), report.seconds, report.coordinator_seconds);
  return AtomicWriteFile(JoinPath(job.output, "results.bin"), all);
}

int Main(int argc, char** argv) {
  InitLogging("chaos_items");
  InstallStopHandlers();
  const absl::StatusOr<Job> job = ReadArguments(argc, argv);
  const auto world = comm::World::Create();
  if (!world.ok()) {
    launch::PrintLastLine(world.status());
    return ExitCodeOf(world.status());
  }
  comm::World& ranks = **world;
  const auto body = [&]() -> absl::Status {
    GRAFT_RETURN_IF_ERROR(job.status());
    comm::WatchdogOptions options;
    options.grid = {ranks.size() / job->pipeline, job->pipeline};
    options.limits.step_seconds = 20;
    options.flight_folder = JoinPath(job->output, "flight");
    options.print = &launch::WriteLastLine;
    ranks.StartWatchdog(options);
    return Run(*job, ranks);
  };
  return launch::RunGuarded(ranks.all(), body);
}

}  // namespace
}  // namespace graft::testing

int main(int argc, char** argv) { return graft::testing::Main(argc, argv); }
