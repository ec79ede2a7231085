// The coordinator and its workers on a virtual clock: the machines of a real run, with a network
// that delays, loses, doubles and reorders messages, workers that die, stall, leave and come back,
// and a coordinator that crashes and starts again from its log. One thread, seeded: the same
// options give the same run. Used by tests and by bench/score_plan. No LibTorch, no MPI.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "trainer/coordinator/coordinator.h"
#include "trainer/coordinator/worker_client.h"

namespace graft::trainer {

// A log in memory that outlives coordinators.
class MemoryLog : public ResultLog {
 public:
  void Append(const std::string& id, int worker, const std::string& result) override;
  absl::Status Sync() override;
  bool dirty() const override { return dirty_; }
  int64_t start() const override { return start_; }
  const std::string* Find(const std::string& id, int* worker) const override;

 private:
  std::unordered_map<std::string, std::pair<int, std::string>> results_;
  bool dirty_ = false;
  int64_t start_ = 1;
};

// Seconds of the virtual clock.
struct SimulatedFault {
  double at = 0;
  // kDie: for ever. kStall: computes nothing and says nothing for `seconds`, then goes on. kLeave:
  // forgets everything and comes back after `seconds`.
  enum class Kind { kDie, kStall, kLeave } kind = Kind::kDie;
  double seconds = 0;
};

struct SimulatedWorker {
  double speed = 1;  // cost per second
  std::vector<SimulatedFault> faults;
};

struct SimulatedNetwork {
  double least_delay = 0.001, most_delay = 0.001;
  double loss = 0, doubling = 0;  // probabilities
};

// Thrown by a log or by `at_event`: the coordinator dies at this point and starts again.
struct SimulatedCrash {};

struct SimulationOptions {
  std::vector<WorkItem> items;
  std::string run_key = std::string(64, '0');
  CoordinatorOptions coordinator;
  WorkerOptions worker;
  std::vector<SimulatedWorker> workers;
  SimulatedNetwork network;
  uint64_t seed = 0;
  double poll_seconds = 0.5;     // between two looks of the coordinator: a micro-batch of rank 0
  int micro_batches = 8;         // of an item
  double restart_seconds = 5;    // until a crashed coordinator is back
  std::vector<double> crashes;   // when it crashes, beside what SimulatedCrash says
  double give_up_seconds = 1e6;  // then the run counts as hung
  // What worker `worker` finds for an item.
  std::function<absl::StatusOr<std::string>(const WorkItem& item, int worker)> compute;
  // Opens the log; called at every start of the coordinator. Empty = one MemoryLog.
  std::function<std::unique_ptr<ResultLog>()> open_log;
  // After every look of the coordinator.
  std::function<void(const Coordinator&)> at_event;
};

struct SimulationReport {
  absl::Status status;  // of the coordinator; kind bug when it hung
  std::vector<std::string> results;
  ItemProgress progress;
  double seconds = 0;        // of the virtual clock
  double computed_cost = 0;  // by all workers, in vain or not
  double total_cost = 0;     // of the items, each once
  double busy_seconds = 0;   // of all workers together
  int64_t restarts = 0;
  int64_t messages = 0;
  int64_t message_bytes = 0;
  double extra_work() const { return computed_cost / total_cost - 1; }
};

SimulationReport Simulate(const SimulationOptions& options);

}  // namespace graft::trainer
