// From scores to the setting: which modules are kept, with which rank (methods.md 16.4). Pure. The
// rule "the k most critical of each layer" is the paper's; k, ties, ranks and the other rules are
// ours. Used by `graft score`. Links without LibTorch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "adapters/importance_file.h"
#include "adapters/setting.h"

namespace graft::adapters {

struct SelectOptions {
  std::string rule = "top_k_per_layer";
  int64_t k = 3;
  double budget = 0;    // parameters, or microseconds per decoded token
  bool rescale = true;  // ranks grow so that the number of trainable parameters stays
  std::string round = "floor";
  int64_t rank = 0;  // 0 = derived
  double alpha = 0;  // 0 = derived
};

// Microseconds that an unmerged module adds to one decoded token, by role: of the first module of
// those that share an input in a layer (q k v; gate up), and of each further one.
struct LatencyTable {
  struct Cost {
    double first = 0, next = 0;
  };
  std::map<models::Role, Cost> roles;
};
// {"format": "graft-latency", "version": 1, "roles": {"attn.q": {"first": 12.5, "next": 8.0},
// ...}}. Strict, kind input.
absl::StatusOr<LatencyTable> ParseLatencyTable(const nlohmann::json& json,
                                               const std::string& origin);
absl::StatusOr<LatencyTable> ReadLatencyTable(const std::string& path);

struct Selection {
  Setting setting;
  nlohmann::ordered_json rule;  // what setting.json says of it
  std::vector<std::string> warnings;
};

// Ties: lower layer, then role order. `latency` is read by the rule latency_budget only;
// `importance_sha256` names the file that was selected from. Kind recipe: ab_rank with a rule over
// the whole model, a budget that keeps nothing, a rank that cannot be derived.
absl::StatusOr<Selection> Select(const Importance& importance, const SelectOptions& options,
                                 const LatencyTable& latency, const std::string& importance_sha256);

// setting.json.
std::string SettingText(const Selection& selection);

}  // namespace graft::adapters
