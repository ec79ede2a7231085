// Which keys of a config.json mean what: read, required to have one value, or
// known to be harmless. Used by model_config.cc only. A key on no list is refused unless it is null
// or false, because a key that nobody here knows may change the mathematics.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/status.h"

namespace graft::models {

// `model_type` decides which family keys (sliding_window, attention_bias, ...) are read.
absl::Status CheckConfigKeys(const nlohmann::json& config, const std::string& model_type,
                             const std::string& origin);

}  // namespace graft::models
