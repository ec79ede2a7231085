// The loss of a model over a whole data set: forward only, each sample once, on any layout. Used by
// training (eval.every) and by `eval`.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "trainer/data/dataset.h"
#include "trainer/loaded_model.h"

namespace graft::trainer {

struct EvalResult {
  double loss = 0;  // nats per trained token; a task with labels: mean over samples
  int64_t samples = 0;
  int64_t tokens = 0;
  int64_t trained_tokens = 0;
  std::vector<std::pair<std::string, double>> metrics;  // of the task (task_metrics.h)
  // `loss` or one of the metrics.
  double Value(const std::string& name) const;
};

// The first `num_samples` of `data`, micro_batch samples at a time. All ranks must call; all get
// the same numbers. Throws as Executor::Evaluate.
EvalResult Evaluate(LoadedModel& model, const Dataset& data, int64_t num_samples,
                    int64_t micro_batch);

}  // namespace graft::trainer
