// RoBERTa's part of a config.json. Used by model_config.cc and named_shapes.cc only.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/status.h"
#include "models/model_config.h"

namespace graft::models {

// What RoBERTa fixes without a key: LayerNorm, biases everywhere, no gate, attention in both
// directions. Needs the sizes, position_rows and position_offset.
void SetRobertaFacts(ModelConfig* config);

// Sizes and numerics. max_positions is what a text may use: the table less its first rows. Errors:
// kind input naming the key.
absl::Status ReadRobertaConfig(const nlohmann::json& config, const std::string& origin,
                               ModelConfig* out);

}  // namespace graft::models
