// The scalars of a run that a checkpoint keeps beside the tensors (reliability.md 1.2). Pure. Used
// by the trainer.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

namespace graft::trainer {

struct RunState {
  int64_t step = 0;     // finished steps = updates + skipped
  int64_t updates = 0;  // applied
  int64_t skipped = 0;  // not finite
  int64_t consecutive_skips = 0;
  std::deque<int64_t> recent_skips;  // steps, of the last 1,000
  std::optional<double> best_loss;   // of an evaluation
  int64_t best_step = 0;
  int64_t evaluations_since_best = 0;
  bool ended_early = false;  // eval.patience ran out: the run is complete

  // Books a step that has just finished.
  void CountStep(bool was_skipped);
  // More than 5 in a row or more than 10 in the last 1,000 steps.
  bool TooManySkips() const;
  // Books an evaluation; true = the best so far.
  bool CountEvaluation(double loss);
};

}  // namespace graft::trainer
