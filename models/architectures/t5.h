// T5 (arXiv 1910.10683): v1.0 with a ReLU feed-forward and a tied, scaled head; v1.1 and FLAN-T5
// with a gated one and a head of their own. Layers 0..Le-1 are the encoder's, Le..Le+Ld-1 the
// decoder's. Reads top to bottom in t5.cc.
#pragma once

#include <memory>
#include <vector>

#include "models/backbone.h"

namespace graft::models {

absl::StatusOr<std::unique_ptr<Backbone>> BuildT5(const ModelConfig& config, LayerRange range,
                                                  WeightSource& weights,
                                                  const BackboneOptions& options);
std::vector<SiteSpec> ListT5Sites(const ModelConfig& config);

}  // namespace graft::models
