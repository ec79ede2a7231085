// One decoding step's attention to a cache with fixed room, on devices other than the host: all
// rows in one launch on a GPU (decode_attention_gpu.inc), else by LibTorch's operators. The host
// never sees how long the sequences are, so a captured step can be replayed. Used by the key-value
// cache (attention.h); no gradient.
#pragma once

#include <torch/types.h>

#include "models/layers/attention.h"
#include "models/site.h"

namespace graft::models {
class GpuKernels;  // models/gpu_kernels.h
}

namespace graft::models::device {

// (places, rows, kv_heads * head_dim) each, contiguous, in q's dtype.
struct PlacedRows {
  torch::Tensor keys, values;
};

// q (N, heads * head_dim), k and v (N, kv_heads * head_dim), contiguous: row n is at `positions[n]`
// of the sequence at `places[n]`, no two rows at the same place. Writes k and v there and attends
// to all rows up to them. Computed in float32, -> like q. Causal, no bias.
torch::Tensor DecodeAttention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const DecodingInputs& decoding,
                              const PlacedRows& cache, const AttentionShape& shape);

// The kernels, for tests that compile them where there is no GPU.
GpuKernels& DecodeAttentionKernels();

}  // namespace graft::models::device
