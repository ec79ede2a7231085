// AdamW on the flat buffers of one stage's AdapterSet (values, gradients, two moments; all float32,
// same layout), with the definition of torch.optim.AdamW in its fused form. Used by the trainer and
// saved by the checkpoint. It knows no schedule and no clipping: both come as numbers.
#pragma once

#include <cstdint>

#include <torch/types.h>

namespace graft::trainer {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
};

class AdamW {
 public:
  // Moments of the size of `values` ((P) float32), zero. P = 0 is allowed: a stage without trained
  // parameters.
  AdamW(const torch::Tensor& values, const AdamWOptions& options);

  // One update of `values` in place with rate `lr`. gradients: (P) float32, already divided and
  // clipped.
  void Step(torch::Tensor values, const torch::Tensor& gradients, double lr);

  // Applied updates so far; drives the bias correction.
  int64_t updates() const { return updates_; }
  const torch::Tensor& exp_avg() const { return exp_avg_; }        // (P)
  const torch::Tensor& exp_avg_sq() const { return exp_avg_sq_; }  // (P)
  // After the moments were loaded in place from a checkpoint.
  void set_updates(int64_t updates) { updates_ = updates; }

 private:
  AdamWOptions options_;
  torch::Tensor exp_avg_, exp_avg_sq_;
  int64_t updates_ = 0;
};

// Sum of squares in float64 of a float32 buffer; the global norm is the root of its sum over
// stages.
double SumOfSquares(const torch::Tensor& gradients);
// torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6), at most 1; 1 when max_norm is 0 (off).
double ClipCoefficient(double global_norm, double max_norm);

}  // namespace graft::trainer
