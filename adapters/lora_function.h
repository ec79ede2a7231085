// The autograd function of LoRA's edit. Used by lora.cc and its tests.
//
// Shapes: N rows, r rank, D_in, D_out widths of the linear.
#pragma once

#include <memory>
#include <optional>

#include <torch/types.h>

#include "adapters/dropout.h"
#include "models/site.h"

namespace graft::adapters {

struct LoraEditOptions {
  double scale = 1.0;
  std::optional<DropoutMask> dropout;            // D; none = identity
  torch::Dtype compute_dtype = torch::kFloat32;  // of the matrix products
  torch::Tensor gate = {};  // (N) float32 factor of each row's edit, differentiable; undefined = 1
};

// y + scale (D(x) A^T) B^T (arXiv 2106.09685, equation 3), written into y (N, D_out) and returned.
// a (r, D_in), b (D_out, r) are leaves of any dtype and get gradients of their own dtype, summed in
// float32 at least. For the backward pass it keeps t = D(x) A^T alone, and x only where x has no
// rebuilder; without anything that requires grad it keeps nothing.
torch::Tensor LoraEdit(const models::SiteInput& x, torch::Tensor y, const torch::Tensor& a,
                       const torch::Tensor& b, LoraEditOptions options);

}  // namespace graft::adapters
