// The rotary-embedding part of a config.json, in the form of transformers 4 (`rope_theta` +
// `rope_scaling`) and 5 (`rope_parameters`). Used by model_config.cc only.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "models/model_config.h"

namespace graft::models {

// Every key of the chosen type is checked; a key of another type, or another value of the same key
// in a second place, is an error.
absl::StatusOr<RopeConfig> ReadRopeConfig(const nlohmann::json& config, int64_t max_positions,
                                          const std::string& origin);

}  // namespace graft::models
