// GPT-2: learned positions, LayerNorm before each block, Conv1D weights, a fused q-k-v projection.
// Reads top to bottom in gpt2.cc.
#pragma once

#include <memory>
#include <vector>

#include "models/backbone.h"

namespace graft::models {

absl::StatusOr<std::unique_ptr<Backbone>> BuildGpt2(const ModelConfig& config, LayerRange range,
                                                    WeightSource& weights,
                                                    const BackboneOptions& options);
// attn.q, .k, .v are thirds of the outputs of one module (SiteSpec::fused_features).
std::vector<SiteSpec> ListGpt2Sites(const ModelConfig& config);

}  // namespace graft::models
