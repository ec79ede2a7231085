#include "models/layers/task_loss.h"

#include <ATen/ATen.h>

namespace graft::models {

torch::Tensor TaskLossSum(const torch::Tensor& outputs, const MicroBatch& batch) {
  if (!batch.labels.empty()) {
    const torch::Tensor labels = torch::tensor(batch.labels, torch::kInt64);
    return at::cross_entropy_loss(outputs, labels, {}, at::Reduction::Sum).to(torch::kFloat64);
  }
  const torch::Tensor values = torch::tensor(batch.values, torch::kFloat32);
  return at::mse_loss(outputs.view({-1}), values, at::Reduction::Sum).to(torch::kFloat64);
}

}  // namespace graft::models
