// The two reductions of a training step: the adapter gradients over the data group, and the control
// vector over all ranks.
#pragma once

#include <vector>

#include "comm/communicator.h"

namespace graft::comm {

// Sums the flat gradient buffer of a stage over its data group: one all-reduce per step. The policy
// of what lies in the buffer is the adapter set's; this only moves and adds.
class FlatReducer {
 public:
  // `data_group` must outlive the reducer.
  explicit FlatReducer(Communicator& data_group) : data_group_(data_group) {}
  // In place, float32, host or device memory as the communicator's backend wants. A stage without
  // trainables enters with count 0. All ranks of the data group must call, with the same count.
  // Throws kind peer; kind bug for another type.
  void Reduce(Buffer gradients);
  int group_size() const { return data_group_.size(); }

 private:
  Communicator& data_group_;
};

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
