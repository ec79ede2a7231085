// importance.json (interfaces.md 6, methods.md 16): the scores of one run with what they were
// measured on, and all that a selection needs besides. Written by `graft score`; read by it again
// for `score.from`.
//
// The bytes depend on the values alone (base/json_writer.h), so that runs on other layouts can be
// compared byte by byte.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "adapters/importance.h"

namespace graft::adapters {

// The LoRA that was scored, where all modules have the same.
struct ReferenceSize {
  int64_t rank = 0;
  double alpha = 0;
  bool rslora = false;
};

// What fixes the numbers besides model, adapter and data: all from the recipe (methods.md 16.3).
struct ScoreGrid {
  std::string dtype;
  int64_t threads = 0, shard_samples = 0, layer_block = 0, micro_batch = 0;
};

struct Importance {
  std::string score;  // one of kScoreMethods
  std::string model_type;
  int num_layers = 0;
  std::string model_fingerprint, adapter_fingerprint, data_fingerprint;
  int64_t num_samples = 0;
  int64_t num_tokens = 0, num_trained_tokens = 0;
  std::optional<double> base_loss;  // Loss(M); none for scores without a forward pass
  std::optional<double> bare_loss;  // Loss(base), where it was measured
  ScoreGrid grid;
  std::optional<ReferenceSize> reference;
  std::vector<ModuleScore> modules;  // by (layer, role)
};

std::string ImportanceText(const Importance& importance);

// Strict: kind input for unknown or missing keys, another format or version, a module that comes
// twice or out of order, a role that is no linear. `origin` opens the message.
absl::StatusOr<Importance> ParseImportance(const nlohmann::json& json, const std::string& origin);
absl::StatusOr<Importance> ReadImportance(const std::string& path);

}  // namespace graft::adapters
