// GPT-2's part of a config.json. Used by model_config.cc and named_shapes.cc only.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/status.h"
#include "models/model_config.h"

namespace graft::models {

// What GPT-2 fixes without a key: LayerNorm, biases everywhere, no gate. Needs max_positions.
void SetGpt2Facts(ModelConfig* config);

// Sizes and numerics (n_embd, n_layer, ...). Errors: kind input naming the key.
absl::Status ReadGpt2Config(const nlohmann::json& config, const std::string& origin,
                            ModelConfig* out);

}  // namespace graft::models
