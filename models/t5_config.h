// T5's part of a config.json (v1.0, v1.1, FLAN-T5). Used by model_config.cc and named_shapes.cc
// only.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/status.h"
#include "models/model_config.h"

namespace graft::models {

// What T5 fixes without a key: RMSNorm, no biases, one key-value head per head, no limit on
// positions.
void SetT5Facts(ModelConfig* config);

// Sizes and numerics (d_model, num_layers, num_decoder_layers, ...). Errors: kind input naming the
// key.
absl::Status ReadT5Config(const nlohmann::json& config, const std::string& origin,
                          ModelConfig* out);

}  // namespace graft::models
