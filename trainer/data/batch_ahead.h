// Collates the micro-batches of a step while the one before is computed: reading the samples of a
// data set (from disk, the first time) and laying them out then costs a GPU no time. Used by the
// trainer. No LibTorch.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/background_task.h"
#include "models/micro_batch.h"

namespace graft::trainer {

class BatchAhead {
 public:
  // The micro-batches of one step. Runs on a thread of its own; what it reads must outlive this
  // object and not change meanwhile.
  using Collation = std::function<std::vector<models::MicroBatch>()>;

  // Begins with the batches of `step`.
  void Start(int64_t step, Collation collation);
  // Those of `step`: what was begun, when it is that step, else `collation` now. Throws what the
  // collation threw.
  std::vector<models::MicroBatch> Take(int64_t step, const Collation& collation);

 private:
  int64_t step_ = -1;
  std::vector<models::MicroBatch> batches_;  // of step_, when the task is done
  BackgroundTask task_;                      // waits for its thread before they go
};

}  // namespace graft::trainer
