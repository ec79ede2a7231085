// Everything of a training step that touches another rank, of all ranks, in order, as text
// (reliability.md 4.3): which hidden states and gradients travel between which stages, which
// buffers are reduced over which ranks, what all ranks agree on at the end. Each rank compiles it
// for itself before the first step; equal texts mean that every send meets its receive and every
// collective its partners. Used by the trainer. No LibTorch, no MPI.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sharding/plan.h"
#include "sharding/schedule.h"

namespace graft::sharding {

struct StepShape {
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int data_ranks = 1;
  int micro_batches = 1;  // of a data rank in a step
  bool shard_weights = false;
};

// One operation a line: "stage 0: forward 2.0, send to stage 1", then the reductions. Kind recipe
// as of BuildSchedule; kind bug when a schedule waits for itself or a transfer lacks its other end.
absl::StatusOr<std::string> CompileStep(const Plan& plan, const StepShape& shape);

// "line 3: `a`, the other has `b`"; empty when the texts are equal.
std::string FirstDifference(const std::string& mine, const std::string& other);

}  // namespace graft::sharding
