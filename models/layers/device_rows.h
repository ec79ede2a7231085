// The arithmetic of row_kernels.h on whole tensors of any device: on a GPU by kernels of our own
// (row_kernels_gpu.inc), else by LibTorch's operators. Used by the layers where the loops for host
// memory do not run (models/device.h); the roundings are the same: float32 inside, once at the end.
//
// Shapes: N rows, D width.
#pragma once

#include <array>
#include <cstdint>

#include <torch/types.h>

namespace graft::models {
class GpuKernels;  // models/gpu_kernels.h
}

namespace graft::models::device {

// RMSNorm: y = weight (.) (x rstd), x rstd rounded to x's dtype first, rstd = 1 / sqrt(mean(x^2) +
// eps) of each row, (N) float32; y again from rstd; and the gradient of x. `weight` (D) float32.
struct Normed {
  torch::Tensor y, rstd;
};
Normed RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps);
torch::Tensor ScaleByNorm(const torch::Tensor& x, const torch::Tensor& weight,
                          const torch::Tensor& rstd);
torch::Tensor RmsNormBackward(const torch::Tensor& x, const torch::Tensor& weight,
                              const torch::Tensor& rstd, const torch::Tensor& dy);

// silu(gate) (.) up, and the gradients of both.
torch::Tensor SwiGlu(const torch::Tensor& gate, const torch::Tensor& up);
std::array<torch::Tensor, 2> SwiGluBackward(const torch::Tensor& gate, const torch::Tensor& up,
                                            const torch::Tensor& dy);

// Each head of x (N, heads * head_dim) turned by the row's angles, (N, head_dim / 2) float32 each;
// sign -1 = backward.
torch::Tensor Rotate(const torch::Tensor& x, const torch::Tensor& cosine, const torch::Tensor& sine,
                     int64_t head_dim, float sign);

// Cross-entropy of each row of logits (N, V) float32 against ids (N), (N) float32. `gradient`: the
// logits become softmax - onehot in place.
torch::Tensor TokenLosses(torch::Tensor& logits, const torch::Tensor& ids, bool gradient);

// The kernels, for tests that compile them where there is no GPU.
GpuKernels& RowKernels();

}  // namespace graft::models::device
