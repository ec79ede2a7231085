// A job without a model for the chaos tests: every rank adds numbers over all ranks step by step
// and checks the sums, watched like a training run. One rank can be made to misbehave.
//
//   chaos_ranks OUTPUT STEPS STEP_LIMIT_SECONDS [MODE RANK STEP]
//
// MODE at that rank and step: loop (computes for ever), sleep (a call that does not return), order
// (another collective than the others), size (the same collective with other counts), throw (an
// error of its own). Rank 0 prints "step N SECONDS" for each step. Exit 70 when a sum is wrong.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/logging.h"
#include "base/signals.h"
#include "base/status.h"
#include "comm/world.h"
#include "launch/guard.h"

namespace graft::testing {
namespace {

struct Job {
  std::string output;
  int64_t steps = 0;
  double step_seconds = 0;
  std::string mode;
  int rank = -1;
  int64_t step = -1;
};

absl::StatusOr<Job> ReadArguments(int argc, char** argv) {
  Job job;
  const bool good = (argc == 4 || argc == 7) && absl::SimpleAtoi(argv[2], &job.steps) &&
                    absl::SimpleAtod(argv[3], &job.step_seconds);
  if (!good) return UsageError("chaos_ranks OUTPUT STEPS STEP_LIMIT_SECONDS [MODE RANK STEP]");
  job.output = argv[1];
  if (argc == 4) return job;
  job.mode = argv[4];
  if (!absl::SimpleAtoi(argv[5], &job.rank) || !absl::SimpleAtoi(argv[6], &job.step))
    return UsageError("RANK and STEP are numbers");
  return job;
}

void Misbehave(const std::string& mode, comm::Communicator& all) {
  if (mode == "loop") {
    std::atomic<int64_t> turns{0};
    while (turns.fetch_add(1) >= 0) {
    }
  }
  if (mode == "sleep") ::sleep(3600);
  if (mode == "throw") throw StatusError(NumericError("a number that is none"));
  if (mode == "order") all.Barrier();
  if (mode == "size") {
    std::vector<double> values(8);
    all.AllReduce({values.data(), values.size(), comm::DType::kFloat64, -1}, comm::ReduceOp::kSum);
  }
}

void Step(comm::Communicator& all, int64_t step) {
  std::vector<double> values(4096, static_cast<double>(step + all.rank()));
  all.AllReduce({values.data(), values.size(), comm::DType::kFloat64, -1}, comm::ReduceOp::kSum);
  const double size = all.size();
  const double expected = size * static_cast<double>(step) + size * (size - 1) / 2;
  for (const double value : values) {
    GRAFT_CHECK(value == expected,
                absl::StrCat("step ", step, ": sum ", value, ", expected ", expected));
  }
}

absl::Status Run(const Job& job, comm::World& world) {
  for (int64_t step = 1; step <= job.steps; ++step) {
    const auto begin = std::chrono::steady_clock::now();
    world.heartbeat().Enter(comm::Phase::kStep, step);
    world.recorder().set_step(step);
    if (world.rank() == job.rank && step == job.step) Misbehave(job.mode, world.all());
    Step(world.all(), step);
    if (world.rank() > 0) continue;
    std::printf("step %ld %.3f\n", static_cast<long>(step),
                std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  InitLogging("chaos_ranks");
  InstallStopHandlers();
  auto world = comm::World::Create();
  if (!world.ok()) {
    launch::PrintLastLine(world.status());
    return ExitCodeOf(world.status());
  }
  comm::World& ranks = **world;
  return launch::RunGuarded(
      ranks.all(),
      [&]() -> absl::Status {
        GRAFT_ASSIGN_OR_RETURN(const Job job, ReadArguments(argc, argv));
        comm::WatchdogOptions options;
        options.limits = {.step_seconds = job.step_seconds};
        options.flight_folder = JoinPath(job.output, "flight");
        options.print = &launch::WriteLastLine;
        ranks.StartWatchdog(options);
        return Run(job, ranks);
      },
      {},
      [&](const absl::Status& error) {
        ranks.DumpFlight(std::string(error.message()), comm::World::FlightScope::kNode);
      });
}

}  // namespace
}  // namespace graft::testing

int main(int argc, char** argv) { return graft::testing::Main(argc, argv); }
