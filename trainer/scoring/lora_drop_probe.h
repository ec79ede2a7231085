// Measures lora_drop (methods.md 16.1) while the model runs: a hook in front of LoRA's own at a
// scored linear sums norm(s B A x_t)^2 and norm(W x_t)^2 over each sample's tokens. The first needs
// no output of the size of the linear: with u_t = A x_t it is tr(s^2 B^T B sum_t u_t u_t^T) (the
// Gram form, ours). Used by the scoring runner.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "adapters/adapter.h"
#include "models/site.h"

namespace graft::trainer {

class LoraDropProbe : public models::SiteHook {
 public:
  // `bias` (out) of the linear, which is no part of W x_t; undefined = it has none.
  LoraDropProbe(const adapters::LowRankEdit& edit, torch::Tensor bias);

  // Forgets what was measured. `num_samples` of the item that follows, `micro_batch` of them in
  // each micro-batch.
  void Begin(int64_t num_samples, int64_t micro_batch);
  // Sums of each sample.
  const std::vector<double>& edits() const { return edits_; }
  const std::vector<double>& outputs() const { return outputs_; }

  // y (N, out) = W x + b, before any edit.
  torch::Tensor EditOutput(const models::SiteInput& x, torch::Tensor y,
                           models::SiteContext& context) override;

 private:
  const torch::Tensor a_;     // (r, in) float32
  const torch::Tensor gram_;  // s^2 B^T B, (r, r) float64
  const torch::Tensor bias_;
  int64_t micro_batch_ = 1;
  std::vector<double> edits_, outputs_;
};

}  // namespace graft::trainer
