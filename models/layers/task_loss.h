// Losses of classification and regression on the outputs of a task head. Used by the executor and
// by scoring.
#pragma once

#include <torch/types.h>

#include "models/micro_batch.h"

namespace graft::models {

struct BatchInputs;  // models/site.h

// outputs (S, C) float32, one row per sample of `batch`. With labels: sum over samples of the
// cross-entropy (nats); with values (C = 1): sum of squared errors. A float64 scalar,
// differentiable in `outputs`. `inputs`: SiteContext::inputs of the pass.
torch::Tensor TaskLossSum(const torch::Tensor& outputs, const MicroBatch& batch,
                          const BatchInputs* inputs = nullptr);
// The same of each sample, (S) float32, no grad. For scoring.
torch::Tensor TaskLosses(const torch::Tensor& outputs, const MicroBatch& batch);

}  // namespace graft::models
