// The control vector of a training step, reduced over all ranks. (The gradients, over the data
// group: sharding/gradient_reduction.h.)
#pragma once

#include <vector>

#include "comm/communicator.h"

namespace graft::comm {

// What all ranks must agree on once per step, after the gradient reduction and before the update
// (reliability.md 3.2). Every rank fills in its own share; ReduceControl returns the same totals on
// every rank, and all decisions use only those.
struct ControlVector {
  // Sums, in rank order.
  double loss_sum = 0;        // over trained tokens; last stages only
  double trained_tokens = 0;  // last stages only
  double samples = 0;         // last stages only
  double tokens = 0;          // last stages only
  double gradient_square_sum =
      0;  // of the reduced gradients; data rank 0 of each stage only, so that each counts once
  double non_finite = 0;     // non-finite gradient entries and losses
  double stop_requests = 0;  // ranks that got a stop signal
  double saves_done = 0;
  double saves_failed = 0;
  double compute_seconds = 0;
  double model_flop = 0, hardware_flop = 0;  // of the step; last stages only
  // Largest over the ranks.
  double error_code = 0;  // of a recoverable error, 0 = none
  double peak_memory_bytes = 0;
  double communication_seconds = 0;
};

// All ranks of `world` must call. `by_rank` (may be null) gets what each rank filled in. Throws
// kind peer.
ControlVector ReduceControl(Communicator& world, const ControlVector& mine,
                            std::vector<ControlVector>* by_rank = nullptr);

}  // namespace graft::comm
