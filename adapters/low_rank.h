// The skinny matrix products of low-rank methods. Used by lora; no autograd here.
//
// Shapes: N rows, r rank (small), D_in, D_out widths. The low-rank state is kept rank-major, t
// (r, N): on CPU every product below then has its fast orientation (two to four times faster than
// (N, r)).
#pragma once

#include <torch/types.h>

namespace graft::adapters {

// t = a x^T: a (r, D_in) rounded to x's dtype, x (N, D_in) -> (r, N) in x's dtype.
torch::Tensor ProjectDown(const torch::Tensor& a, const torch::Tensor& x);

// y += scale * t^T b^T in place: t (r, N), b (D_out, r) rounded to t's dtype, y (N, D_out). The sum
// is rounded once to y's dtype.
void AddProjectUp(torch::Tensor y, const torch::Tensor& t, const torch::Tensor& b, double scale);

// t rows: (r, N) x (N, D) -> (r, D), summed in float32 (float64 for float64) whatever the operands'
// dtype is, and returned so. The weight gradients of both halves.
torch::Tensor SumOverRows(const torch::Tensor& t, const torch::Tensor& rows);

}  // namespace graft::adapters
