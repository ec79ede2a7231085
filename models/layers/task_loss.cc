#include "models/layers/task_loss.h"

#include <ATen/ATen.h>

#include "models/device.h"
#include "models/site.h"

namespace graft::models {

namespace {

torch::Tensor Losses(const torch::Tensor& outputs, const MicroBatch& batch,
                     const BatchInputs* inputs, int64_t reduction) {
  if (!batch.labels.empty()) {
    const torch::Tensor labels =
        inputs != nullptr ? inputs->labels : IndexTensor(batch.labels, outputs.device());
    return at::cross_entropy_loss(outputs, labels, {}, reduction);
  }
  const torch::Tensor values =
      inputs != nullptr ? inputs->values
                        : ToDevice(torch::tensor(batch.values, torch::kFloat32), outputs.device());
  return at::mse_loss(outputs.view({-1}), values, reduction);
}

}  // namespace

torch::Tensor TaskLossSum(const torch::Tensor& outputs, const MicroBatch& batch,
                          const BatchInputs* inputs) {
  return Losses(outputs, batch, inputs, at::Reduction::Sum).to(torch::kFloat64);
}

torch::Tensor TaskLosses(const torch::Tensor& outputs, const MicroBatch& batch) {
  at::NoGradGuard no_grad;
  return Losses(outputs, batch, /*inputs=*/nullptr, at::Reduction::None);
}

}  // namespace graft::models
