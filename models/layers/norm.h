// A normalisation: LayerNorm when it has a bias, else RMSNorm; frozen, or trained when its weight
// requires grad. Used by layers and loss heads, so that neither asks which family it serves.
#pragma once

#include <torch/types.h>

#include "models/site.h"

namespace graft::models {

struct Norm {
  torch::Tensor weight;  // (D) float32
  torch::Tensor bias;    // (D) float32; undefined = RMSNorm
  double eps = 1e-6;
  double gain = 1;  // on the output, of a trained norm; a frozen one has it in its weight
  // x (N, D) -> (N, D), differentiable in x and in what is trained.
  SiteInput Forward(const torch::Tensor& x) const;
};

}  // namespace graft::models
