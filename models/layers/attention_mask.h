// What LibTorch's attention kernels are told about which keys a query sees. Used by attention.cc
// for decoding and by device_attention.cc.
#pragma once

#include <cstdint>
#include <optional>

#include <torch/types.h>

#include "models/layers/attention.h"

namespace graft::models {

struct ScoreMask {
  std::optional<torch::Tensor> added;  // to the scores: (queries, keys), or with heads in front
  bool causal = false;                 // the kernel's own causal mask instead
};

// For the last `queries` of `keys` positions; the mask is of `dtype` and lies on `device`.
ScoreMask MaskOf(int64_t queries, int64_t keys, const AttentionShape& shape, torch::Dtype dtype,
                 torch::Device device);

}  // namespace graft::models
