// How LoRA of separate q, k, v (`fused: split`) stands in an adapter folder for one shared module:
// the A blocks stacked, B block diagonal, rank and alpha times the number of parts, which is the
// same function (methods.md 3). Used by lora.cc.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "adapters/adapter.h"
#include "adapters/tensor_check.h"

namespace graft::adapters {

inline constexpr char kLoraAName[] = "lora_A.weight";
inline constexpr char kLoraBName[] = "lora_B.weight";

// rank_pattern and alpha_pattern of the shared modules, by full module name.
struct LoraPatterns {
  nlohmann::json rank = nlohmann::json::object();
  nlohmann::json alpha = nlohmann::json::object();
};
LoraPatterns SplitPatterns(const std::vector<models::SiteSpec>& matched, int64_t rank, double alpha,
                           bool rslora);
// Error kind input when the patterns of an adapter_config.json are others.
absl::Status CheckPatterns(const nlohmann::json& config, const LoraPatterns& expected,
                           const std::string& origin);

// The parts' A (r, in) and B (out, r) -> A (c r, in), B (fused, c r) for c parts. Other tensors
// stay.
NamedTensors JoinSplitLora(const std::vector<models::SiteSpec>& matched, NamedTensors parameters);
// The way back; `rank_of` gives the rank of a part, the same for all parts of a module. Error kind
// input: absent, other shapes, or B not block diagonal.
using RankOf = std::function<int64_t(const models::SiteSpec& site)>;
absl::StatusOr<NamedTensors> CutSplitLora(const std::vector<models::SiteSpec>& matched,
                                          const RankOf& rank_of, NamedTensors folder,
                                          const std::string& origin);

}  // namespace graft::adapters
