// config.json of a T5 model: v1.0 (relu, tied and scaled head) and v1.1 (gated gelu, a head of its
// own). Used by model_config.cc only.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/status.h"
#include "models/model_config.h"

namespace graft::models {

absl::Status ReadT5Config(const nlohmann::json& config, const std::string& origin,
                          ModelConfig* out);
// What the architecture fixes without a key, from the sizes that are set already.
void SetT5Facts(ModelConfig* config);
// transformers 5 writes tie_word_embeddings: true for v1.1 too, whose head is its own: whether the
// folder has one decides. Nothing for other models, and for a folder without weights.
absl::Status SettleT5Head(const std::string& folder, ModelConfig* config);

}  // namespace graft::models
