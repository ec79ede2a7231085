// Ranges that every config.json is checked against, and readers that several families share. Used
// by the config readers only.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"

namespace graft::models {

inline constexpr int64_t kMaxHidden = 65'536;
inline constexpr int64_t kMaxIntermediate = 1'048'576;
inline constexpr int64_t kMaxLayers = 1'024;
inline constexpr int64_t kMaxHeads = 1'024;
inline constexpr int64_t kMaxHeadDim = 4'096;
inline constexpr int64_t kMaxVocab = 4'194'304;
inline constexpr int64_t kMaxPositions = 16'777'216;

// The activation of a feed-forward without a gate: gelu, gelu_new, gelu_pytorch_tanh or relu, else
// kind input.
absl::StatusOr<std::string> ReadActivation(const nlohmann::json& config, const std::string& key,
                                           const std::string& fallback, const std::string& origin);

}  // namespace graft::models
