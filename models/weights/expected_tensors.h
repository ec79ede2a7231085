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

// A tensor and the layer that owns it: [0, num_layers); num_layers = in front of the layers;
// num_layers + 1 = behind them.
struct PlacedTensor {
  std::string name;
  std::vector<int64_t> shape;
  int layer = 0;
};
// The same tensors by layer, then name. `language_head` false: without the projection to the
// vocabulary, which a task head replaces.
std::vector<PlacedTensor> PlacedTensors(const ModelConfig& config, bool language_head);

// Opens every shard. Error kind input names the first tensor that is missing, has another shape, is
// not a float tensor, or belongs to no place of the model (a bias that the config denies would
// change the result). Rotary caches of old folders, task heads and the stored copy of a tied head
// are allowed.
absl::Status CheckWeights(const ModelConfig& config, WeightFolder& weights);

}  // namespace graft::models
