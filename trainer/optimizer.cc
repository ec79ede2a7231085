#include "trainer/optimizer.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace graft::trainer {
namespace {

constexpr int64_t kSquaresAtATime = int64_t{4} << 20;

}  // namespace

AdamW::AdamW(const torch::Tensor& values, const AdamWOptions& options)
    : options_(options), exp_avg_(at::zeros_like(values)), exp_avg_sq_(at::zeros_like(values)) {}

void AdamW::Step(torch::Tensor values, const torch::Tensor& gradients, double lr) {
  ++updates_;
  if (values.numel() == 0) return;
  at::NoGradGuard no_grad;
  const at::Tensor step =
      at::full({}, static_cast<double>(updates_), values.options().dtype(at::kFloat));
  at::_fused_adamw_({values}, {gradients}, {exp_avg_}, {exp_avg_sq_}, /*max_exp_avg_sqs=*/{},
                    {step}, lr, options_.beta1, options_.beta2, options_.weight_decay, options_.eps,
                    /*amsgrad=*/false, /*maximize=*/false);
}

double SumOfSquares(const torch::Tensor& gradients) {
  if (gradients.numel() == 0) return 0.0;
  at::NoGradGuard no_grad;
  // Squares in float64 do not overflow for any finite float32, so a large but finite gradient is
  // clipped, not skipped. Piece by piece: of a whole model's gradients a float64 copy would be the
  // largest tensor of the step.
  at::Tensor sum = at::zeros({}, gradients.options().dtype(at::kDouble));
  for (const at::Tensor& piece : gradients.split(kSquaresAtATime)) {
    const at::Tensor wide = piece.to(at::kDouble);
    sum.add_(at::dot(wide, wide));
  }
  return sum.item<double>();
}

double ClipCoefficient(double global_norm, double max_norm) {
  if (max_norm <= 0.0) return 1.0;
  return std::min(1.0, max_norm / (global_norm + 1e-6));
}

}  // namespace graft::trainer
