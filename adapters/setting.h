// setting.json: which linears of which layers FanLoRA adapts, with their ranks and alphas
// (interfaces.md 6, methods.md 16.4). Read by method fanlora; selection.h writes it. Links without
// LibTorch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "models/role.h"

namespace graft::adapters {

inline constexpr char kSettingFormat[] = "graft-setting";

struct KeptLayer {
  int layer = 0;
  std::vector<models::Role> roles;  // linears, in the fixed order
  int64_t rank = 0;
  double alpha = 0;
};

struct Setting {
  std::string model_type;
  int num_layers = 0;
  std::vector<KeptLayer> keep;  // by rising layer
};

// Strict: kind input for an unknown key, another format or version, a layer or role that comes
// twice, no role at all. What was selected by which rule is not looked into. `origin` opens the
// message.
absl::StatusOr<Setting> ParseSetting(const nlohmann::json& json, const std::string& origin);
absl::StatusOr<Setting> ReadSetting(const std::string& path);

}  // namespace graft::adapters
