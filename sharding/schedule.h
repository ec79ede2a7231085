// Pipeline schedules as plain lists of operations per stage, and a simulator that runs such lists
// against given durations. Used by the executor (which runs the lists for real), by `plan` and by
// tests. Knows no tensors, no ranks, no clocks.
//
// GPipe: Huang et al. 2019 (arXiv 1811.06965). 1F1B: Narayanan et al. 2019 (PipeDream-Flush, arXiv
// 2006.09503). Interleaved 1F1B: Narayanan et al. 2021 (arXiv 2104.04473). Every schedule runs
// backward passes in micro-batch order, so that gradients are summed in the same order under all of
// them. Parts without backward (frozen prefix) have forward operations only.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace graft::sharding {

enum class ScheduleKind { kGPipe, k1F1B, kInterleaved };
const char* ScheduleName(ScheduleKind kind);  // "gpipe", "1f1b", "interleaved"
// Error kind recipe lists the names.
absl::StatusOr<ScheduleKind> ParseSchedule(const std::string& name);

enum class Pass { kForward, kBackward };

struct Op {
  Pass pass = Pass::kForward;
  int micro_batch = 0;
  int chunk = 0;
  friend bool operator==(const Op&, const Op&) = default;
};

struct ScheduleShape {
  ScheduleKind kind = ScheduleKind::k1F1B;
  int stages = 1;
  int chunks = 1;
  int micro_batches = 1;
  // By virtual stage (chunk * stages + stage): runs backward passes. All false = forward only
  // (evaluation).
  std::vector<bool> backward;
};

// Operations of each stage, in execution order. Error kind recipe: chunks without `interleaved`, or
// micro-batches that `interleaved` cannot deal out evenly over the stages (it needs a multiple of
// `stages` when anything runs backward).
absl::StatusOr<std::vector<std::vector<Op>>> BuildSchedule(const ScheduleShape& shape);

struct SimulationInput {
  std::vector<std::vector<Op>> schedule;
  int stages = 1;
  int chunks = 1;
  std::vector<bool> backward;            // as in ScheduleShape
  std::vector<double> forward_seconds;   // by virtual stage, of one micro-batch
  std::vector<double> backward_seconds;  // by virtual stage
  double transfer_seconds = 0;           // between two stages
  int buffers = 0;  // messages under way per link before a sender must wait; 0 = unlimited
};

struct SimulatedOp {
  Op op;
  double begin = 0;
  double end = 0;
};

struct Simulation {
  double step_seconds = 0;
  double bubble_fraction = 0;  // 1 - compute time / (stages * step time)
  std::vector<int>
      in_flight;  // per stage: most (micro-batch, chunk) pairs between forward and backward
  std::vector<std::vector<SimulatedOp>> timeline;  // per stage
};

// Runs the lists. Error kind bug names the first stage and operation that waits for ever.
absl::StatusOr<Simulation> Simulate(const SimulationInput& input);

}  // namespace graft::sharding
