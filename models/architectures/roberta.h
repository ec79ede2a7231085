// RoBERTa: an encoder with LayerNorm behind each block, learned positions from padding id + 1 on,
// and attention in both directions. Reads top to bottom in roberta.cc. It has no language-model
// head here: its outputs are those of a task head on `<s>`.
#pragma once

#include <memory>
#include <vector>

#include "models/backbone.h"

namespace graft::models {

absl::StatusOr<std::unique_ptr<Backbone>> BuildRoberta(const ModelConfig& config, LayerRange range,
                                                       WeightSource& weights,
                                                       const BackboneOptions& options);
std::vector<SiteSpec> ListRobertaSites(const ModelConfig& config);

}  // namespace graft::models
