// The Llama family: Llama 1-3, SmolLM2, Mistral (sliding window), Qwen2 (q, k, v biases). Reads top
// to bottom in llama.cc.
#pragma once

#include <memory>
#include <vector>

#include "models/backbone.h"

namespace graft::models {

absl::StatusOr<std::unique_ptr<Backbone>> BuildLlama(const ModelConfig& config, LayerRange range,
                                                     WeightSource& weights,
                                                     const BackboneOptions& options);
std::vector<SiteSpec> ListLlamaSites(const ModelConfig& config);

}  // namespace graft::models
