// T5 (Raffel et al. 2020, arXiv 1910.10683): an encoder and a decoder, RMSNorm in front of each block,
// relative position biases, attention scores without scaling; v1.0 (relu, tied and scaled head) and
// v1.1 (gated gelu, a head of its own). Reads top to bottom in t5.cc.
//
// Layers 0 .. encoder_layers - 1 are the encoder's. The hidden state holds the encoder's rows and behind
// them the decoder's (MicroBatch::decoder); an encoder layer leaves the decoder's rows as they are, a
// decoder layer the encoder's, which are then the encoder's final output. So every stage boundary
// carries one tensor, and gradients of all decoder layers add up in the encoder's rows.
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
