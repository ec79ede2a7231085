// How often to save: the interval that loses least, from the size of a checkpoint and how long a
// machine lasts (reliability.md 1.5; Young 1974, "A first order approximation to the optimum
// checkpoint interval"). Pure. Used by `graft plan`.
#pragma once

#include <cstdint>
#include <string>

namespace graft::sharding {

struct SaveAdvice {
  double interval_seconds = 0;
  double overhead = 0;  // share of the time lost to stalls, repeated steps and restarts
};

// What a save stops the training for: one copy of this rank's share of the state.
double PredictedStall(int64_t bytes_per_rank);
// interval = sqrt(2 stall mttf); overhead = stall / interval + interval / (2 mttf) + restart /
// mttf.
SaveAdvice AdviseSaves(double stall_seconds, double mttf_seconds);

// A line for `plan`: `trainable` parameters over `ranks` ranks; `step_seconds` 0 = unknown.
std::string SaveAdviceLine(int64_t trainable, int ranks, double step_seconds);

}  // namespace graft::sharding
