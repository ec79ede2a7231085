// Which tensors a model folder must hold, from its config alone: names and shapes of every family.
// Used by `graft inspect` and by checks before any weight is loaded. No LibTorch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "models/model_config.h"
#include "models/weights/safetensors.h"

namespace graft::models {

// Every weight and bias; a tied head has no tensor of its own.
std::map<std::string, std::vector<int64_t>> ExpectedTensors(const ModelConfig& config);

// Opens every shard. Error kind input names the first tensor that is missing, has another shape, is
// not a float tensor, or belongs to no place of the model (a bias that the config denies would
// change the result). Rotary caches of old folders, task heads and the stored copy of a tied head
// are allowed.
absl::Status CheckWeights(const ModelConfig& config, WeightFolder& weights);

}  // namespace graft::models
