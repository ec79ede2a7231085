// LoRA's A of linears that share an input (q, k, v; gate, up) as one product, forward and backward:
// the input is read once and gets one gradient. The same arithmetic as LoraEdit's, but that the
// linears' parts of the input's gradient add up inside the product instead of in the input's dtype.
// Used by lora.cc where the input does not lie in host memory.
//
// Shapes: N rows, r_i ranks, R their sum, D_in, D_out widths of the linears.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "models/site.h"

namespace graft::adapters {

// Shared by the hooks of the linears, which may see their input in any order and number: the first
// that sees an input multiplies for all of them. What the others will ask for waits in the context.
// No dropout, whose masks differ from linear to linear.
class LoraTogether {
 public:
  // The A (r_i, D_in) of each linear, leaves; products in `compute_dtype`.
  LoraTogether(std::vector<torch::Tensor> a, torch::Dtype compute_dtype)
      : a_(std::move(a)), compute_dtype_(compute_dtype) {}

  // t = x A^T (r, N) of linear `index`; nothing where the linear's input is another than the one
  // that was multiplied for all.
  std::optional<torch::Tensor> Project(size_t index, const models::SiteInput& x,
                                       models::SiteContext& context) const;

 private:
  std::vector<torch::Tensor> Products(const models::SiteInput& x) const;

  const std::vector<torch::Tensor> a_;
  const torch::Dtype compute_dtype_;
};

// y + scale t^T B^T, written into y (N, D_out) and returned: t (r, N) from Project, b (D_out, r) a
// leaf of any dtype.
torch::Tensor AddProjected(torch::Tensor y, const torch::Tensor& t, const torch::Tensor& b,
                           double scale);

}  // namespace graft::adapters
