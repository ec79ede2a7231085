// Rotary position embedding with the scalings of the Llama family: default, linear, dynamic,
// llama3, yarn (the formulas of transformers' modeling_rope_utils). Keeps nothing but the angles'
// cosines and sines of the micro-batch, shared by all layers.
#pragma once

#include <vector>

#include <torch/types.h>

#include "models/micro_batch.h"
#include "models/model_config.h"

namespace graft::models {

// Inverse frequencies (head_dim / 2) for a sequence of `length` tokens (only `dynamic` depends on
// it), and in *attention_factor what cosine and sine are multiplied by (yarn; else 1).
std::vector<float> InverseFrequencies(const ModelConfig& config, int64_t length,
                                      float* attention_factor);

// Cosines and sines of one micro-batch, (N, head_dim / 2) each, float32 on `device`, rounded to
// `dtype` as the reference does.
struct RopeAngles {
  torch::Tensor cosine, sine;
};
RopeAngles MakeRopeAngles(const ModelConfig& config, const MicroBatch& batch, torch::Dtype dtype,
                          torch::Device device = torch::kCPU);

// The same of every position below `rows`, each as the last of its sequence: (rows, head_dim / 2).
RopeAngles MakeRopeTable(const ModelConfig& config, int64_t rows, torch::Dtype dtype,
                         torch::Device device);

// x (N, heads * head_dim) -> rotated, same shape. Differentiable.
torch::Tensor Rope(const torch::Tensor& x, const RopeAngles& angles, int64_t head_dim);

}  // namespace graft::models
