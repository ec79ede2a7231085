#include "models/layers/task_loss.h"

#include <ATen/ATen.h>

#include "models/device.h"

namespace graft::models {

namespace {

torch::Tensor Losses(const torch::Tensor& outputs, const MicroBatch& batch, int64_t reduction) {
  if (!batch.labels.empty()) {
    const torch::Tensor labels = IndexTensor(batch.labels, outputs.device());
    return at::cross_entropy_loss(outputs, labels, {}, reduction);
  }
  const torch::Tensor values =
      ToDevice(torch::tensor(batch.values, torch::kFloat32), outputs.device());
  return at::mse_loss(outputs.view({-1}), values, reduction);
}

}  // namespace

torch::Tensor TaskLossSum(const torch::Tensor& outputs, const MicroBatch& batch) {
  return Losses(outputs, batch, at::Reduction::Sum).to(torch::kFloat64);
}

torch::Tensor TaskLosses(const torch::Tensor& outputs, const MicroBatch& batch) {
  at::NoGradGuard no_grad;
  return Losses(outputs, batch, at::Reduction::None);
}

}  // namespace graft::models
